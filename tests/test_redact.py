from __future__ import annotations

import pytest

from idc_ray.redact import redact, redact_all


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
