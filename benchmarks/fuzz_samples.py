"""Small valid files of every kind that purify-audit reads, for `fuzz_formats.py` to damage.

To add a kind, write a function that makes one and put it into `SAMPLES` with what reads it.
"""

import gzip
import os
import pickle  # noqa: TID251 - hostile pickles, to be refused
import struct
import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_worker import Sample
from safetensors.torch import save_file
from torch import Tensor, nn

from purify_audit.images.image_set import load_images
from purify_audit.models.checkpoint import save_checkpoint
from purify_audit.models.containers.read import read_weights
from purify_audit.models.export import export_purifier
from purify_audit.models.load import load_classifier, load_purifier
from purify_audit.models.networks import build_network
from purify_audit.models.open import open_checkpoint, open_classifier
from purify_audit.spec.architectures import (
    AutoencoderArgs,
    DDPMUNetArgs,
    DnCNNArgs,
    NCSNppArgs,
    UNetArgs,
)
from purify_audit.spec.card import (
    ClassifierCard,
    DiffusionCard,
    FeedforwardCard,
    ImageSpec,
    Provenance,
)
from purify_audit.spec.load_options import LoadOptions

CANARY = "canary"
"""The file that hostile samples would make in the working folder if they ran."""

_CPU = torch.device("cpu")
_IMAGE = ImageSpec(channels=1, height=8, width=8)
_PROVENANCE = Provenance(data="none", command="none", licence="Apache-2.0")


# --- readers ------------------------------------------------------------------------------------


def _purifier(path: Path, image: ImageSpec = _IMAGE, **answers: Any) -> None:
    load_purifier(open_checkpoint(str(path), image, LoadOptions(**answers)), _CPU)


def _classifier(path: Path) -> None:
    load_classifier(open_classifier(str(path), _IMAGE), _CPU)


def _images(path: Path) -> None:
    load_images(str(path)).check()


# --- purifiers and classifiers ------------------------------------------------------------------


def _diffusion(network: Any, image: ImageSpec = _IMAGE) -> DiffusionCard:
    return DiffusionCard.model_validate(
        {
            "name": "tiny",
            "image": image,
            "provenance": _PROVENANCE,
            "network": network,
            "prediction": "eps",
            "time_conditioning": "index",
            "schedule": {"kind": "linear", "steps": 100},
            "data_range": (-1.0, 1.0),
            "t_star": 20,
            "sampler": {"kind": "ddpm", "steps": 3},
        }
    )


def _feedforward(network: Any) -> FeedforwardCard:
    return FeedforwardCard(name="tiny", image=_IMAGE, provenance=_PROVENANCE, network=network)


def _weights(card: Any) -> dict[str, Tensor]:
    """The same numbers at every call: a ramp in each tensor."""
    state = build_network(card).state_dict()
    return {
        name: torch.linspace(0.1, 0.2, tensor.numel()).reshape(tensor.shape).to(tensor.dtype)
        for name, tensor in state.items()
    }


_UNET = _diffusion(UNetArgs(width=4, multipliers=(1, 2), blocks=1, groups=2))
_AUTOENCODER = _feedforward(AutoencoderArgs(widths=(2, 3)))
_DDPM = _diffusion(DDPMUNetArgs(width=32, multipliers=(1,), blocks=1))
_NCSNPP = _diffusion(NCSNppArgs(width=8, multipliers=(1,), blocks=1))
_DNCNN = _feedforward(DnCNNArgs(width=4, depth=3))
_CHAIN = {"t_star": "20", "sampler": "ddpm:steps=3,variance=fixed-small,clip=false"}


def _native(path: Path, card: Any = _UNET) -> None:
    save_checkpoint(path, card, _weights(card))


def _native_classifier(path: Path) -> None:
    card = ClassifierCard.model_validate(
        {
            "name": "tiny",
            "image": _IMAGE,
            "provenance": _PROVENANCE,
            "network": {"arch": "cnn", "widths": (2, 3), "hidden": 4},
            "classes": 10,
            "mean": (0.5,),
            "std": (0.25,),
        }
    )
    save_checkpoint(path, card, _weights(card))


def _ddim_list(path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in _weights(_DDPM).items()}
    optimiser = {"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save([state, optimiser, 3, 7000, state], path)


def _score_sde(path: Path) -> None:
    state, card = _weights(_NCSNPP), _NCSNPP
    shadow = [torch.ones_like(each) for each in build_network(card).parameters()]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow}
    model = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": model, "ema": ema, "step": 7}, path)


def _legacy_dncnn(path: Path) -> None:
    torch.save(_weights(_DNCNN), path, _use_new_zipfile_serialization=False)


def _training(path: Path, zipped: bool) -> None:
    weight = torch.arange(60.0).reshape(6, 10)
    value = {
        "state_dict": nn.Linear(3, 4).state_dict(),
        "views": [weight, weight[2:4], weight.t(), weight[:, ::2]],
        "types": {str(kind): torch.arange(5).to(kind) for kind in (torch.half, torch.int64)},
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": (None, True, 1, 2**40, 0.5, "text", [], {}, b"bytes", torch.Size((1, 2))),
    }
    torch.save(value, path, _use_new_zipfile_serialization=zipped)


class _Runs:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {CANARY}",)


def _hostile(path: Path, protocol: int, zipped: bool) -> None:
    value = {"w": torch.ones(2), "run": _Runs()}
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)


def _hostile_plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Runs()))


def _exported(path: Path) -> None:
    native = path.with_name("native.safetensors")
    _native(native, _AUTOENCODER)
    export_purifier(open_checkpoint(str(native), None), path)
    native.unlink()


class _Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1)


def _torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still what people have
        torch.jit.save(torch.jit.trace(_Blur(), torch.ones(3, 1, 8, 8)), path)


def _onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    shape = ["n", 1, 8, 8]
    inside, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y"))
    kernel = helper.make_tensor("w", TensorProto.FLOAT, (1, 1, 3, 3), [1 / 9] * 9)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "blur", [inside], [out], [kernel])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def _diffusers(path: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    network.save_pretrained(path / "unet", safe_serialization=False)
    DDPMScheduler(num_train_timesteps=100).save_pretrained(path / "scheduler")


# --- images -------------------------------------------------------------------------------------

_PIXELS = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
_LABELS = [0, 1, 2, 1]


def _npz(path: Path, save: Callable[..., None]) -> None:
    save(path, x=_PIXELS, y=np.array(_LABELS))


def _image_tensors(path: Path) -> None:
    save_file({"x": torch.from_numpy(_PIXELS), "y": torch.tensor(_LABELS)}, path)


def _idx_folder(path: Path) -> None:
    path.mkdir()
    images = struct.pack(">4B3I", 0, 0, 8, 3, *_PIXELS.shape) + _PIXELS.tobytes()
    labels = struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes(_LABELS)
    (path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
    (path / "t10k-labels-idx1-ubyte").write_bytes(labels)


def _pictures(path: Path) -> None:
    from PIL import Image

    for row, (ending, label) in enumerate((("png", "a"), ("jpg", "a"), ("png", "b"))):
        (path / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(_PIXELS[row]).save(path / label / f"{row}.{ending}")


def _cifar(path: Path) -> None:
    path.mkdir()
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 4], b"batch_label": b"test"}
    (path / "test_batch").write_bytes(pickle.dumps(batch, 2))


def _cifar_bin(path: Path) -> None:
    path.write_bytes(bytes([3, *[7] * 3072, 9, *[8] * 3072]))


def _parquet(path: Path) -> None:
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    pictures = []
    for row in _PIXELS:
        Image.fromarray(row).save(data := BytesIO(), "PNG")
        pictures.append({"bytes": data.getvalue(), "path": "x.png"})
    parquet.write_table(pyarrow.table({"image": pictures, "label": _LABELS}), path)


_SDE = {"prediction": "eps", "time_conditioning": "continuous", "schedule.kind": "linear"}
_SDE |= {"data_range": "-1,1", "network.fir": "false", "network.scale_by_sigma": "false"}

SAMPLES = (
    Sample("native purifier", "a.safetensors", _native, _purifier, 2),
    Sample("native classifier", "c.safetensors", _native_classifier, _classifier),
    Sample("weights, zip", "w.pth", partial(_training, zipped=True), read_weights, 3),
    Sample("weights, legacy", "w.ckpt", partial(_training, zipped=False), read_weights, 3),
    *(
        Sample(
            f"hostile, {'zip' if zipped else 'legacy'}, protocol {protocol}",
            "h.pth",
            partial(_hostile, protocol=protocol, zipped=zipped),
            read_weights,
            refused=True,
        )
        for zipped, protocol in ((True, 2), (True, 4), (False, 2))
    ),
    Sample("hostile, plain", "h.pkl", _hostile_plain, read_weights, 0.5, refused=True),
    Sample("ddim list", "d.pth", _ddim_list, partial(_purifier, weights="ema", assume=_CHAIN)),
    Sample(
        "score_sde", "s.pth", _score_sde, partial(_purifier, weights="ema", assume=_CHAIN | _SDE)
    ),
    Sample("dncnn, legacy", "n.pth", _legacy_dncnn, partial(_purifier, assume={"sigma": "0.1"})),
    Sample("diffusers", "folder", _diffusers, partial(_purifier, assume=_CHAIN)),
    Sample("exported program", "e.pt2", _exported, _purifier, 2),
    Sample("torchscript", "t.pt", _torchscript, _purifier, 0.5, refused=True),
    Sample(
        "onnx",
        "o.onnx",
        _onnx,
        partial(_purifier, assume={"data_range": "0,1", "noise": "none"}),
    ),
    Sample("npy", "x.npy", lambda path: np.save(path, _PIXELS), _images),
    Sample("npz", "x.npz", partial(_npz, save=np.savez), _images),
    Sample("npz, compressed", "x.npz", partial(_npz, save=np.savez_compressed), _images),
    Sample("safetensors images", "x.safetensors", _image_tensors, _images),
    Sample("idx", "idx", _idx_folder, _images),
    Sample("pictures", "pictures", _pictures, _images),
    Sample("cifar pickle", "cifar", _cifar, _images, 2),
    Sample("cifar binary", "b.bin", _cifar_bin, _images, 0.5),
    Sample("parquet", "p.parquet", _parquet, _images, 2),
)
