"""Exported graphs for tests: small networks saved, and archives with entries changed."""

import json
import os
import pickle
import zipfile

import torch
from torch.export import Dim

from purify_audit.core.noise import Noise
from purify_audit.models.exported.read import read_graph
from purify_audit.models.load import load_purifier
from purify_audit.spec.load_options import LoadOptions

CPU = torch.device("cpu")
IMAGE = {"channels": 1, "height": 8, "width": 8}
CALL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


def graph_card(container="pt2", **changes):
    """The JSON of a graph's card, as a dict."""
    return {
        "name": "graph",
        "image": IMAGE,
        "provenance": {"data": "none", "command": "none", "licence": "Apache-2.0"},
        "family": "graph",
        "network": {"arch": "graph", "container": container},
        "noise": "none",
    } | changes


def classifier_card(container="pt2", **changes):
    card = graph_card(container) | {"family": "classifier", "classes": 10}
    del card["noise"]
    return card | {"mean": [0.5], "std": [0.25]} | changes


def read(path, card=None, **answers):
    """The checkpoint of a graph, under the answers of a `LoadOptions`."""
    return read_graph(path, card, LoadOptions(**answers))


def load(path, **answers):
    return load_purifier(read(path, **answers), CPU)


def noise(n, seed=3):
    return Noise(seed, tuple(range(n)), tuple(range(10, 10 + n)))


def images(n):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def save_pt2(path, module, *inputs, rows=(1, 64), card=None):
    """Save a module of tensors whose first axis has a range of lengths, or is fixed (`None`)."""
    shapes = None
    if rows is not None:
        free = {0: Dim("rows", min=rows[0], max=rows[1])}
        shapes = tuple(free if tensor.dim() else None for tensor in inputs)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    extra = {} if card is None else {"purify_audit.json": json.dumps(card)}
    torch.export.save(program, path, extra_files=extra)
    return path


def rewritten(source, out, changes):
    """Copy an archive with entries replaced: name -> bytes, none to leave out, or a function of
    the old bytes (of the old JSON, for a name that ends in .json)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        names = {info.filename.partition("/")[2]: info.filename for info in old.infolist()}
        top = next(iter(names.values())).partition("/")[0]
        for name in {**names, **changes}:
            data = old.read(names[name]) if name in names else b""
            change = changes.get(name, data)
            if callable(change) and name.endswith(".json"):
                value = json.loads(data)
                change = json.dumps(change(value) or value).encode()
            elif callable(change):
                change = change(data)
            if change is not None:
                new.writestr(f"{top}/{name}", change)
    return out


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pickled(marker):
    """What torch.load takes for an old file of its own, and unpickles when it may."""
    return pickle.dumps(Payload(marker))


class Plain(torch.nn.Module):
    """x + 0.1 conv(x) + a constant, clamped: a purifier without randomness."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return (x + 0.1 * self.conv(x) + torch.tensor([0.01])).clamp(0.0, 1.0)


class Drawing(Plain):
    """The same with noise of its own."""

    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x)


class Zoo(Plain):
    """Operators of every shape: several outputs, lists, sizes, text, buffers, views, in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.register_buffer("steps", torch.arange(8))

    def forward(self, x, z):
        largest, where = x.max(3)
        rows = x.unbind(2)
        y = self.conv(x) * self.scale + z * rows[0].mean(2)[:, :, None, None]
        y = torch.nn.functional.pad(y, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]
        n = x.shape[0]
        y = y.reshape(2 * n, 4, 8).reshape(n, 1, 8, 8) + where.float().mean() * 0.01
        y = y.index_add(3, self.steps, torch.full_like(y, 0.25)).to(torch.float32)
        return torch.cat((y[..., :4], torch.roll(y, 1, 3)[..., 4:]), 3) + largest[..., None] / n


def target(name):
    """A change of `CALL`: another operator in the place of the last clamp."""

    def change(program):
        nodes = program["graph_module"]["graph"]["nodes"]
        next(n for n in nodes if n["target"].endswith("clamp.default"))["target"] = name

    return change
