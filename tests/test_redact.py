from __future__ import annotations

import io
import json
import logging
import random
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from idc_ray import redact as module
from idc_ray.cli import run_job, start_logging
from idc_ray.errors import BadRequest, IdcError, RejectedImage
from idc_ray.locate import locate
from idc_ray.object_stores import StoreUnavailable
from idc_ray.redact import learn, printable, redact, redact_all, redact_within
from idc_ray.store.filesystem import json_bytes, resolve
from idc_ray.store.quarantine import QuarantineEntry, quarantine_image


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have let the process know hides no fault here."""
    monkeypatch.setattr(module, "_known", set())


#: Everything that a URI's user-info may hold somewhere: the delimiters of URIs, of quoted text, of markup.
ODD = "/?#@:%&=+'\"`,;()[]{}<>|\\$!*~^ "


def uris(seed: int, count: int, odd: str = ODD) -> Iterator[tuple[str, list[str]]]:
    """URIs of any scheme with secrets in every place where one may stand, and those secrets."""
    rng = random.Random(seed)

    def secret() -> str:
        letters = string.ascii_letters + string.digits
        inner = "".join(rng.choice(letters + odd) for _ in range(rng.randint(0, 12)))
        return "".join(rng.choice(letters) for _ in range(9)) + inner + "".join(rng.choice(letters) for _ in range(9))

    for _ in range(count):
        scheme = rng.choice(["s3", "gs", "http", "https", "postgresql", "mysql+pymysql", "hf", "databricks", "x-y.z"])
        password, token, key = secret().replace("@", ""), secret().translate(_PLAIN), secret().translate(_PLAIN)
        user = rng.choice(["key", "me%40home", "AKIA1234"])
        name = rng.choice(["token", "secret_key", "X-Amz-Signature", "sig", "session_token", "odd"])
        uri = f"{scheme}://{user}:{password}@host:5000/a/b"
        uri += rng.choice(["", f"?{name}={token}", f"?region=eu-west-1&{name}={token}&{name}2={key}"])
        yield uri, [password, *(each for each in (token, key) if each in uri)]


_PLAIN = str.maketrans("", "", ODD)


def leaks(text: str, secrets: list[str]) -> list[str]:
    """Pieces of secrets of 6 characters or more that a text still has."""
    return [s for s in secrets if any(s[i : i + 6] in text for i in range(len(s) - 5))]


@pytest.mark.parametrize("seed", range(10))
def test_no_piece_of_a_secret_of_a_uri_is_left(seed: int) -> None:
    for uri, secrets in uris(seed, 100):
        assert not leaks(redact(uri), secrets), uri
        assert not leaks(str(redact_all({"a": [uri, {"b": (uri,)}]})), secrets), uri


FORMS = [
    "cannot open '{}': no such host",
    'Could not parse SQLAlchemy URL from string "{}"',
    "({}, 3)",
    '{{"uri": "{}", "other": 1}}',
    "<a href={}>",
    "first {}; then {}",
]


@pytest.mark.parametrize("seed", range(10))
def test_no_piece_is_left_in_a_message_of_others(seed: int) -> None:
    """Catches a password with a quote in it, behind which the rest of it stood in an error. No URI is known before."""
    for uri, secrets in uris(seed, 60, odd=ODD.replace(" ", "").replace("<", "").replace(">", "")):
        for form in FORMS:
            module._known.clear()
            assert not leaks(redact_within(form.format(uri, uri)), secrets), (form, uri)


@pytest.mark.parametrize("seed", range(10))
def test_no_known_secret_is_left_however_it_is_quoted(seed: int) -> None:
    """Catches a driver's error that quotes only the password, or the URI decoded."""
    for uri, secrets in uris(seed, 60):
        module._known.clear()
        redact(uri)
        for secret in secrets:
            for text in (f"refused: {secret}", f"{secret!r} is wrong", f"a{uri}z", repr(uri)):
                assert not leaks(redact_within(text), [secret]), (text, uri)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-SECRET01", "{'authorization': 'Basic SECRET01abc='}",
        "Authorization: Digest username='me', response=SECRET01", "x-api-key: SECRET01",
        "AWS_SECRET_ACCESS_KEY=SECRET01/x+y", '"session_token": "SECRET01, with a comma"', "password = 'SECRET01 x'",
        "https://host/cb#access_token=SECRET01&x=1", "hf_token: SECRET01", "AccountKey=SECRET01==",
        "Credential=SECRET01/20260101/eu/s3/aws4_request", "MLFLOW_TRACKING_PASSWORD:SECRET01",
    ],
)  # fmt: skip
def test_headers_and_variables_are_recognised_by_their_names(text: str) -> None:
    assert "SECRET01" not in redact_within(f"request failed ({text}) with 403")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a b.png", "12 tokens of 3 images: 4", "see --mlflow.tracking-uri, or give --no-mlflow.enabled",
        "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role)",
        "mail me@home, line 3: error",
        "a run of digest eb6d0e93f1d2c3b4, but requested is 0123456789abcdef; run it again",
        "the basic idea, a bearer of", "file:///home/a@b/x.png does not exist",
        "(or delete s3://bucket/.lock?scheme=http&region=us-east-1); jobs",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_within(text) == text


def test_secrets_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_Abcdefgh1234")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pa55'word\"x")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "perhaps-12")
    text = redact_within("sent hf_Abcdefgh1234 and pa55'word\"x, perhaps-12")
    assert text == "sent *** and ***, perhaps-12"


SECRET = "S3cr'et/pa\"ss"
URI = f"s3://AKIAKEY:{SECRET}@bucket/a?token=qu3ryS3cret"


def test_errors_logs_and_records_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every way by which a text gets out of a job."""
    errors = [
        IdcError(f"x {URI}"),
        BadRequest(f"x {URI}"),
        StoreUnavailable(f"x {URI}"),
        RejectedImage("a", f"x {URI}"),
    ]
    said = [str(error) for error in errors]
    for main in (_fails_with(BadRequest(f"cannot open {URI}")), _fails_with(RuntimeError(f"cannot open {URI}"))):
        with pytest.raises(SystemExit):
            run_job(main, [])
    said.append(capsys.readouterr().err)
    entry = QuarantineEntry("0" * 16, "a.png", "x", f"read {URI}", f"Traceback {URI}", 1, "l", "t")
    quarantine_image(resolve(str(tmp_path / "out")), "d" * 16, entry)
    said += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(said) == 6
    for text in said:
        assert not leaks(text, [SECRET, "qu3ryS3cret"]), text


def _fails_with(error: Exception) -> object:
    def main(argv: object) -> int:
        raise error

    return main


def test_the_log_has_none_and_names_command_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    start_logging()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream := io.StringIO())
    logging.warning("%s failed: %s", "a\n12:00:00 INFO forged\x1b[2J\u202egnp.exe", OSError(f"at {URI}"))
    try:
        raise ValueError(URI)
    except ValueError:
        logging.exception("a traceback")
    text = stream.getvalue()
    assert not leaks(text, [SECRET, "qu3ryS3cret"])
    assert "a\\x0a12:00:00 INFO forged\\x1b[2J\\u202egnp.exe failed" in text
    assert text.startswith(text[:8]) and "Traceback" in text


def test_a_path_that_cannot_be_opened_is_reported_without_credentials() -> None:
    for open_place in (locate, resolve):
        with pytest.raises(BadRequest) as caught:
            open_place(f"nosuch://key:{SECRET}@host/x?token=qu3ryS3cret")
        assert not leaks(str(caught.value), [SECRET, "qu3ryS3cret"])


def test_learned_once_a_secret_is_removed_from_what_quotes_half_of_it() -> None:
    learn("postgresql://me:p%40ss'word99@db/x")
    assert redact_within("auth failed for p@ss'word99") == "auth failed for ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本 ⟨x⟩", "plain ü 日本 ⟨x⟩"), ("a\x1b[31m\r\n\t\x7f\x9b", "a\\x1b[31m\\x0d\\x0a\\x09\\x7f\\x9b"),
        ("photo\u202egnp.exe", "photo\\u202egnp.exe"), ("a\u2066b\u2069\u200e\u061c", "a\\u2066b\\u2069\\u200e\\u061c"),
        ("x\u200bY\ufeff\u2028", "x\\u200bY\\ufeff\\u2028"), ("\U000e0041", "\\U000e0041"), ("\udce9", "\\udce9"),
        ("क्\u200dष \u0645\u06cc\u200c\u062e", "क्\u200dष \u0645\u06cc\u200c\u062e"),
    ],
)  # fmt: skip
def test_characters_that_command_or_deceive_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_feeds_can_be_kept() -> None:
    assert printable("a\nb\rc", kept="\n") == "a\nb\\x0dc"


def test_json_has_no_credentials() -> None:
    value = {"name\u202e": ["\u2066x\x9b\x7f", "ü\n日本", "\U000e0041", "क्\u200dष"]}
    data = json_bytes(value)
    assert json.loads(data) == value
    text = data.decode()
    assert printable(text, kept="\n") == text
    assert "日本" in text and "ü" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a/b", "s3://bucket/a/b"),
        ("s3://key:sec/ret@bucket/a", "s3://bucket/a"),  # AWS secrets hold slashes, and people do not escape them
        ("s3://key:sec?ret@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("s3://bucket/a?region=eu-west-1&secret_key=x", "s3://bucket/a?region=eu-west-1"),
        (
            "s3://bucket/a?endpoint_override=http://u:p@host:9000",
            "s3://bucket/a?endpoint_override=http://u:p@host:9000",
        ),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x"),
        ("postgresql://me:pw@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("/home/a@b:c/pictures", "/home/a@b:c/pictures"),
        ("just text", "just text"),
    ],
)
def test_credentials_go_and_the_place_stays(text: str, expected: str) -> None:
    if "u:p@" in text:
        assert "u:p" not in redact(text)
    else:
        assert redact(text) == expected


def test_nested_settings_are_redacted_and_other_values_kept() -> None:
    value = {"a": ["s3://k:s@b/x", 1, None], "b": {"c": ("s3://k:s@b/y", 0.5)}}
    assert redact_all(value) == {"a": ["s3://b/x", 1, None], "b": {"c": ["s3://b/y", 0.5]}}


def test_credentials_of_an_endpoint_are_removed_too() -> None:
    uri = "s3://bucket/a?region=eu-west-1&endpoint_override=http%3A%2F%2Fme%3As3cretPass%40localhost%3A9000"
    for place in (locate(uri), resolve(uri)):
        assert "localhost" in place.uri and "me" not in place.uri
    assert "s3cretPass" not in redact_within("refused me:s3cretPass and s3cretPass")
