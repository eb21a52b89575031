"""Tests torchvision backbones. Large ones are built on the meta device."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import StochasticDepth

from trainables.settings import EncoderSettings
from trainables.simclr import Encoder, build_encoder
from trainables.simclr.backbones import describe
from trainables.simclr.batchnorm import GlobalBatchNorm2d, calibrate
from trainables.simclr.pretrained import load_pretrained, normalisation

#: Few weights, and all the kinds of stems.
SMALL = ["resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5"]


def seeded(name: str, stem: str = "cifar", channels: int = 3, seed: int = 0, size: int | None = None) -> Encoder:
    settings = EncoderSettings.model_validate({"backbone": name, "stem": stem})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(settings, channels, image_size=size)


def first_convolution(encoder: nn.Module) -> nn.Conv2d:
    return next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))


def last_map(encoder: Encoder, size: int) -> int:
    """Returns the side of the last feature map."""
    sides: list[int] = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    device = next(encoder.parameters()).device
    with torch.no_grad():
        encoder.eval()(torch.rand(1, encoder.channels, size, size, device=device))
    return sides[-1]


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- properties of backbones ---


@pytest.mark.slow
def test_torchvision_is_imported_on_demand() -> None:
    code = """
import sys
from trainables.simclr import build_encoder
from trainables.settings import EncoderSettings
from trainables.settings import SimCLRSettings
build_encoder(SimCLRSettings().encoder)
assert "torchvision" not in sys.modules
assert EncoderSettings(backbone="resnet18").features == 512
assert "torchvision" in sys.modules
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("resnet34", 512),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("densenet121", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("regnet_y_400mf", 440),
        ("googlenet", 1024),
        ("inception_v3", 2048),
        ("vgg11", 4096),
        ("alexnet", 4096),
        ("mnasnet0_5", 1280),
        ("convnext_tiny", 768),
        ("swin_t", 768),
        ("maxvit_t", 512),
        ("vit_b_16", 768),
    ],
)
def test_features_equal_the_classifiers_inputs(name: str, features: int) -> None:
    before = torch.random.get_rng_state()
    assert describe(name).features == features
    assert EncoderSettings(backbone=name, stem="imagenet").features == features
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"backbone": "resnet81"}, "did you mean 'resnet18'"),
        ({"backbone": "cifar_resnt"}, "did you mean 'cifar_resnet'"),
        ({"backbone": "qqq"}, "'qqq' is unknown; use cifar_resnet or a classification network of torchvision.models"),
        ({"backbone": "fcn_resnet50"}, "'fcn_resnet50' is unknown"),
        ({"backbone": "squeezenet1_1"}, "squeezenet1_1 has no linear classifier"),
        ({"backbone": "vit_b_16"}, "vit_b_16 splits images into patches; use stem: imagenet"),
        ({"backbone": "swin_t", "stem": "cifar"}, "swin_t splits images into patches; use stem: imagenet"),
        ({"backbone": "convnext_tiny"}, "convnext_tiny splits images into patches"),
        ({"backbone": "maxvit_t"}, "maxvit_t splits images into patches"),
        ({"weights": "torchvision"}, "torchvision has no weights of cifar_resnet"),
        ({"weights": "imagenet"}, "use null, torchvision, or a file named"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)) as caught:
        EncoderSettings.model_validate(settings)
    assert caught.value.error_count() == 1
    assert caught.value.errors()[0]["loc"] == (("stem",) if "patches" in complaint else (next(iter(settings)),))


# --- the network ---


@pytest.mark.parametrize("name", SMALL)
def test_backbones_are_adapted_for_simclr(name: str) -> None:
    encoder = seeded(name, size=32)
    representations = encoder(torch.rand(2, 3, 32, 32))
    assert representations.shape == (2, encoder.settings.features)
    representations.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    assert all(gradient is not None for gradient in gradients)  # DistributedDataParallel waits for all of them
    assert gradients[0] is not None
    assert float(gradients[0].abs().max()) > 0
    assert not any(isinstance(module, nn.Linear) and module.out_features == 1000 for module in encoder.modules())


@pytest.mark.parametrize("name", SMALL)
def test_batch_norms_are_global_and_otherwise_the_same(name: str) -> None:
    norms = [module for module in seeded(name).modules() if isinstance(module, nn.BatchNorm2d)]
    originals = [module for module in get_model(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(isinstance(norm, GlobalBatchNorm2d) for norm in norms)
    for norm, original in zip(norms, originals, strict=True):
        assert (norm.eps, norm.momentum) == (original.eps, original.momentum)
        assert same(norm, original)


@pytest.mark.parametrize(("name", "stem"), [("efficientnet_b0", "cifar"), ("convnext_tiny", "imagenet")])
def test_training_mode_is_deterministic(name: str, stem: str) -> None:
    encoder, images = seeded(name, stem), torch.rand(2, 3, 32, 32)
    assert not any(isinstance(module, nn.Dropout | StochasticDepth) for module in encoder.modules())
    with torch.no_grad():
        assert torch.equal(calibrate(encoder, [images])[0], calibrate(encoder, [images])[0])


@pytest.mark.parametrize("name", SMALL)
def test_a_stem_for_small_images_keeps_their_resolution(name: str) -> None:
    cifar, imagenet = seeded(name, "cifar"), seeded(name, "imagenet")
    assert first_convolution(cifar).stride == (1, 1)
    assert first_convolution(cifar).kernel_size == (3, 3)
    assert first_convolution(imagenet).stride == (2, 2)
    factor = 4 if name in ("resnet18", "densenet121", "shufflenet_v2_x0_5") else 2  # with a pooling, or without
    assert last_map(cifar, 64) == factor * last_map(imagenet, 64)


@pytest.mark.parametrize(
    ("name", "stem", "size", "first", "last"),
    [
        ("resnet34", "cifar", 32, (3, 1), 4),
        ("resnet34", "imagenet", 32, (7, 2), 1),
        ("googlenet", "cifar", 32, (3, 1), 4),
        ("googlenet", "imagenet", 32, (7, 2), 1),
        ("alexnet", "cifar", 32, (3, 1), 15),
        ("vgg11", "cifar", 32, (3, 1), 2),
        ("vgg11", "imagenet", 32, (3, 1), 2),
        ("inception_v3", "cifar", 75, (3, 1), 3),
        ("inception_v3", "imagenet", 75, (3, 2), 1),
        ("convnext_tiny", "imagenet", 32, (4, 4), 1),
        ("vit_b_16", "imagenet", 32, (16, 16), 2),
    ],
)
def test_stems(name: str, stem: str, size: int, first: tuple[int, int], last: int) -> None:
    with torch.device("meta"):
        encoder = seeded(name, stem, size=size)
    convolution = first_convolution(encoder)
    assert (convolution.kernel_size[0], convolution.stride[0]) == first
    assert last_map(encoder, size) == last
    images = torch.empty(2, 3, size, size, device="meta")
    assert encoder.train()(images).shape == (2, encoder.settings.features)  # a tensor in training, too


@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [
        ("inception_v3", "imagenet", 32),
        ("alexnet", "imagenet", 32),
        ("vgg11", "cifar", 16),
        ("vit_b_16", "imagenet", 28),
        ("maxvit_t", "imagenet", 32),
    ],
)
def test_images_of_a_wrong_size_are_refused_when_the_network_is_built(name: str, stem: str, size: int) -> None:
    start = f"backbone {name} with stem {stem} does not accept images of {size} x {size} pixels"
    with pytest.raises(ValueError, match=start) as caught:
        seeded(name, stem, size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("name", "stem"), [("shufflenet_v2_x0_5", "imagenet"), ("resnet18", "cifar")])
def test_images_of_other_channels(name: str, stem: str, channels: int) -> None:
    encoder = seeded(name, stem, channels, size=32)
    assert first_convolution(encoder).in_channels == encoder.channels == channels
    assert encoder(torch.rand(2, channels, 32, 32)).shape == (2, encoder.settings.features)


# --- initial weights ---


@pytest.mark.parametrize("channels", [1, 3])
def test_initialisation_depends_on_the_seed(channels: int) -> None:
    one, again, other = (seeded("resnet18", channels=channels, seed=seed) for seed in (1, 1, 2))
    assert same(one, again)
    assert not torch.equal(first_convolution(one).weight, first_convolution(other).weight)


def test_a_new_first_convolution_is_initialised_like_the_old_one() -> None:
    weight = first_convolution(seeded("resnet18")).weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)  # He et al. 2015, equation 14
    weight = first_convolution(seeded("densenet121", channels=1)).weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 9), rel=0.1)  # by fan-in, equation 10


def test_random_weights_get_centred_pixels() -> None:
    encoder, images = seeded("shufflenet_v2_x0_5").eval(), torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(images), encoder.backbone((images - 0.5) * 4))


# --- weights from files ---


def pretrained(name: str = "shufflenet_v2_x0_5") -> nn.Module:
    """Returns a torchvision network with statistics and weights that differ from initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        options = {"init_weights": True} if name == "googlenet" else {}
        network: nn.Module = get_model(name, **options)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.1 * torch.rand_like(tensor))
    return network.eval()


def written(state: dict[str, Tensor], file: Path) -> str:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return str(file)


@pytest.mark.parametrize(
    ("name", "file"),
    [("shufflenet_v2_x0_5", "it.pth"), ("regnet_y_400mf", "it.pt"), ("mnasnet0_5", "it.safetensors")],
)
def test_torchvision_weights_give_torchvision_outputs(name: str, file: str, tmp_path: Path) -> None:
    network, images = pretrained(name), torch.rand(2, 3, 64, 64)
    weights = written(network.state_dict(), tmp_path / file)
    encoder = build_encoder(EncoderSettings(backbone=name, stem="imagenet", weights=weights)).eval()
    classifier = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    network.set_submodule(classifier, nn.Identity())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network((images - mean[:, None, None]) / std[:, None, None])
        assert torch.equal(encoder(images), expected)


def test_the_first_convolution_is_loaded_if_its_shape_is_kept(tmp_path: Path) -> None:
    kept = pretrained("shufflenet_v2_x0_5")
    weights = written(kept.state_dict(), tmp_path / "kept.pt")
    encoder = build_encoder(EncoderSettings(backbone="shufflenet_v2_x0_5", weights=weights))
    assert torch.equal(first_convolution(encoder).weight, first_convolution(kept).weight)

    replaced = pretrained("resnet18")
    weights = written(replaced.state_dict(), tmp_path / "replaced.pt")
    encoder = build_encoder(EncoderSettings(backbone="resnet18", weights=weights))
    assert first_convolution(encoder).weight.shape == (64, 3, 3, 3)
    assert torch.equal(encoder.state_dict()["backbone.layer4.1.conv2.weight"], replaced.layer4[1].conv2.weight)


def test_weights_are_summed_over_colours_for_gray_images(tmp_path: Path) -> None:
    network = pretrained()
    weights = written(network.state_dict(), tmp_path / "weights.pt")
    settings = EncoderSettings(backbone="shufflenet_v2_x0_5", stem="imagenet", weights=weights)
    encoder = build_encoder(settings, channels=1)
    assert torch.equal(first_convolution(encoder).weight, first_convolution(network).weight.sum(1, keepdim=True))
    assert encoder.mean.flatten().tolist() == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    with pytest.raises(ValueError, match="images of 3 channels, not 4; use images of 3 channels or of 1"):
        build_encoder(settings, channels=4)


def test_auxiliary_classifiers_are_ignored() -> None:
    network = pretrained("googlenet")
    assert any(key.startswith("aux1.") for key in network.state_dict())
    encoder = seeded("googlenet", "imagenet")
    load_pretrained(encoder.backbone, network.state_dict(), "imagenet")
    assert torch.equal(encoder.backbone.inception5b.branch1.conv.weight, network.inception5b.branch1.conv.weight)


def test_old_files_of_densenets_are_loaded() -> None:
    network = pretrained("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    encoder = seeded("densenet121", "imagenet")
    load_pretrained(encoder.backbone, old, "imagenet")
    own = encoder.backbone.state_dict()
    assert all(torch.equal(own[key], network.state_dict()[key]) for key in own)


def test_position_embeddings_are_interpolated() -> None:
    with torch.device("meta"):
        encoder = seeded("vit_b_32", "imagenet", size=64)
    assert encoder.backbone.encoder.pos_embedding.shape == (1, 2 * 2 + 1, 768)
    state = OrderedDict(encoder.to_empty(device="cpu").backbone.state_dict())
    state["encoder.pos_embedding"] = torch.arange(7 * 7 + 1.0)[None, :, None].expand(-1, -1, 768)
    load_pretrained(encoder.backbone, state, "imagenet")
    corners = [0, 1, 7, 43, 49]  # the class token, and the grid's corners
    torch.testing.assert_close(encoder.backbone.encoder.pos_embedding[0, :, 0].detach(), torch.tensor(corners).float())


def test_normalisation_equals_that_of_the_weights() -> None:
    assert normalisation("resnet50")[0].tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert normalisation("efficientnet_v2_l")[0].tolist() == [0.5, 0.5, 0.5]
    # With pretrained weights torchvision's GoogLeNet undoes ImageNet's normalisation: that is (x - 0.5) / 0.5.
    mean, std = (values[:, None, None] for values in normalisation("googlenet"))
    with torch.device("meta"):
        network = get_model("googlenet", init_weights=True, transform_input=True)
    images = torch.rand(2, 3, 4, 4)
    usual = get_model_weights("googlenet").DEFAULT.transforms()
    usual_mean, usual_std = (torch.tensor(values)[:, None, None] for values in (usual.mean, usual.std))
    expected = network._transform_input((images - usual_mean) / usual_std)
    torch.testing.assert_close((images - mean) / std, expected)


@pytest.mark.parametrize("settings", [{"backbone": "shufflenet_v2_x0_5"}, {"backbone": "mnasnet0_5"}, {"width": 8}])
@pytest.mark.parametrize("file", ["encoder.safetensors", "encoder.pt"])
def test_a_saved_encoder_is_loaded_bit_for_bit(settings: dict[str, str], file: str, tmp_path: Path) -> None:
    plain = EncoderSettings.model_validate(settings)
    encoder = build_encoder(plain, channels=1)
    for name, buffer in encoder.named_buffers():
        if name in ("mean", "std"):
            buffer.fill_(0.3)
    weights = written(encoder.state_dict(), tmp_path / file)
    again = build_encoder(plain.model_copy(update={"weights": weights}), channels=1)
    assert same(again, encoder)
    with pytest.raises(ValueError, match="do not match the network"):
        build_encoder(plain.model_copy(update={"weights": weights}), channels=3)


def test_pretrained_weights_can_be_skipped(tmp_path: Path) -> None:
    settings = EncoderSettings(backbone="shufflenet_v2_x0_5", weights=str(tmp_path / "gone.pt"))
    assert build_encoder(settings, pretrained=False).settings == settings


def test_weight_files_are_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert EncoderSettings(weights="weights.pt").weights == str(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("none.pt", None, "cannot be read: .*No such file"),
        ("none.safetensors", None, "cannot be read: .*"),
        ("empty.pt", b"", "cannot be read"),
        ("text.pt", b"not a pickle at all", "contains more than tensors or is corrupt"),
        ("text.safetensors", b"nothing of the kind", "cannot be read"),
        ("list.pt", [torch.zeros(1)], "is not a state dict"),
        ("nested.pt", {"state_dict": {"conv1.weight": torch.zeros(1)}}, "is not a state dict"),
        ("module.pt", nn.Linear(1, 1), "contains more than tensors"),
        ("other.pt", {"conv1.weight": torch.zeros(1)}, "do not match the network, which has no conv1.weight"),
        ("partial.pt", {}, "do not match the network: stem.0.weight is missing"),
        ("shape.pt", {"stem.0.weight": torch.zeros(2)}, r"stem.0.weight has shape \(2,\), not \(16, 3, 3, 3\)"),
    ],
)
def test_invalid_files_are_refused(file: str, content: object, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"^weights {re.escape(str(path))}: .*{complaint}") as caught:
        build_encoder(EncoderSettings(weights=str(path)))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    weights = written(pretrained("shufflenet_v2_x0_5").state_dict(), tmp_path / "shufflenet.pt")
    with pytest.raises(ValueError, match=r"shufflenet\.pt: do not match the network, which has no "):
        build_encoder(EncoderSettings(backbone="mobilenet_v3_small", weights=weights))


def test_a_failed_download_raises_a_helpful_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # no server
    monkeypatch.setenv("no_proxy", "")
    settings = EncoderSettings(backbone="mobilenet_v3_small", weights="torchvision")
    with pytest.raises(ValueError, match=r"^weights torchvision: https://\S+ cannot be downloaded") as caught:
        build_encoder(settings)
    assert re.search(r"set weights to /path/to/mobilenet_v3_small-\w+\.pth$", str(caught.value))
    assert "\n" not in str(caught.value)


def test_torchvisions_weights_come_from_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = pretrained("shufflenet_v2_x0_5")
    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("shufflenet_v2_x0_5").DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    encoder = build_encoder(EncoderSettings(backbone="shufflenet_v2_x0_5", weights="torchvision"))
    assert torch.equal(first_convolution(encoder).weight, first_convolution(network).weight)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
