from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models import EDSR, Teacher


def test_features_are_the_layers_output(teacher: Teacher, edsr: EDSR, image: Tensor) -> None:
    """Catches features of another layer, or of the skip connection's sum."""
    x = edsr.conv_first(image - edsr.mean)
    assert teacher.feature_layer == "conv_after_body"
    assert torch.equal(teacher.features(image), edsr.conv_after_body(edsr.body(x)))
    assert teacher.features(image).shape == (2, teacher.channels, 12, 20)


def test_nothing_after_the_features_is_computed(teacher: Teacher, edsr: EDSR, image: Tensor) -> None:
    ran: list[str] = []
    for name in ("body", "upsample", "conv_last"):
        edsr.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    teacher.features(image)
    assert ran == ["body"]
    teacher.upscale(image)
    assert ran == ["body", "body", "upsample", "conv_last"]


def test_both_in_one_pass_are_the_same_numbers(teacher: Teacher, edsr: EDSR, image: Tensor) -> None:
    passes: list[int] = []
    edsr.conv_first.register_forward_hook(lambda *_: passes.append(1))
    features, out = teacher.features_and_upscale(image)
    assert len(passes) == 1
    assert torch.equal(features, teacher.features(image))
    assert torch.equal(out, teacher.upscale(image))


def test_features_survive_what_the_network_does_to_them_in_place(image: Tensor) -> None:
    """Catches a reference where a copy is needed: an in-place ReLU would cut off the negative half."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 12, 1), nn.PixelShuffle(2))
    teacher = Teacher(net, scale=2, name="in place", sha256="0", feature_layer="0")
    features, _ = teacher.features_and_upscale(image)
    assert torch.equal(features, net[0](image))
    assert features.min() < 0


def test_the_gradient_of_the_input_is_right(image: Tensor) -> None:
    """Against finite differences, in float64: the exception that ends the pass must not cut the graph."""
    torch.manual_seed(0)
    teacher = Teacher(EDSR(2, channels=4, blocks=1), scale=2, name="tiny", sha256="0")
    teacher.model.double()
    tile = image[:1, :, :4, :5].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: teacher.features(x).square().mean((2, 3)), (tile,))


@pytest.mark.parametrize("call", [Teacher.features, Teacher.features_and_upscale])
def test_a_failing_pass_leaves_nothing_behind(
    teacher: Teacher, edsr: EDSR, image: Tensor, call: Callable[[Teacher, Tensor], object]
) -> None:
    """Catches a hook that stays armed: the next upscale would end early, or return the features of before."""
    handle = edsr.body[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError("on purpose")))
    before = sum(len(module._forward_hooks) for module in edsr.modules())
    with pytest.raises(MemoryError, match="on purpose"):
        call(teacher, image)
    assert sum(len(module._forward_hooks) for module in edsr.modules()) == before
    handle.remove()
    edsr(image)
    assert teacher._pass.features is None  # nobody asked for them
    assert teacher.upscale(image).shape == (2, 3, 24, 40)
    assert teacher.features(image).shape == (2, 8, 12, 20)


def test_features_are_not_kept_alive(teacher: Teacher, image: Tensor) -> None:
    """Catches a teacher that holds the last pass's graph, and with it its memory."""
    teacher.features(image)
    assert teacher._pass.features is None


def test_threads_do_not_stop_each_others_passes(teacher: Teacher, image: Tensor) -> None:
    """Catches state on the module: with it `upscale` in one thread is ended by `features` in another."""
    expected, features = teacher.upscale(image), teacher.features(image)
    wrong: list[object] = []

    def work(call: object, result: Tensor) -> None:
        for _ in range(40):
            try:
                if not torch.equal(call(image), result):  # type: ignore[operator]
                    wrong.append("other numbers")
            except BaseException as error:
                wrong.append(error)

    jobs = [(teacher.upscale, expected), (teacher.features, features), (teacher.features, features)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Padding(nn.Module):
    """Pads to multiples of 8 inside, as SwinIR does, without saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.conv_after_body = nn.Conv2d(4, 4, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = nn.functional.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
        return self.tail(self.conv_after_body(self.head(x)))[..., : 2 * h, : 2 * w]


def test_features_of_hidden_padding_are_refused() -> None:
    """Catches maps that are larger than the tile, which would be matched against nothing."""
    teacher = Teacher(Padding(), scale=2, name="padding", sha256="0")
    teacher.check_tile(24)
    with pytest.raises(BadRequest, match=r"gives \(1, 4, 24, 24\) for images of shape \(1, 3, 20, 20\)"):
        teacher.check_tile(20)


def test_features_of_declared_padding_are_cropped() -> None:
    teacher = Teacher(Padding(), scale=2, name="padding", sha256="0", multiple_of=8)
    assert teacher.features(torch.rand(1, 3, 12, 21)).shape == (1, 4, 12, 21)


def test_a_named_layer_is_read(edsr: EDSR, image: Tensor) -> None:
    teacher = Teacher(edsr, scale=2, name="tiny", sha256="0", feature_layer="body.0")
    assert torch.equal(teacher.features(image), edsr.body[0](edsr.conv_first(image - edsr.mean)))
