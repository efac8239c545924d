"""Small classifiers; each takes normalised images and returns logits."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class Cnn(nn.Module):
    """3x3 convolutions with ReLU, every one after the first halving the size, and two linears.

    Args:
        shape: (channels, height, width) of the images.
        widths: feature channels of each convolution.
        hidden: width of the hidden linear layer.
        classes: number of logits.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: tuple[int, ...], hidden: int, classes: int
    ) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        c_in, height, width = shape
        layers: list[nn.Module] = []
        for level, features in enumerate(widths):
            layers += [nn.Conv2d(c_in, features, 3, stride=2 if level else 1, padding=1), nn.ReLU()]
            c_in = features
            if level:
                height, width = (height + 1) // 2, (width + 1) // 2
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(c_in * height * width, hidden)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, h, w]."""
        return cast(Tensor, self.linear(F.relu(self.hidden(self.features(x).flatten(1)))))


class CifarResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2 (He et al., "Deep residual learning", 2016, section 4.2).

    Shortcuts are option A: a strided slice and zero channels. The names of the layers are those
    under which published weights circulate (`conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`).
    """

    def __init__(self, channels: int, depth: int, classes: int) -> None:
        """Build the layers with PyTorch's default weights."""
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_ResidualBlock(16, 16) for _ in range(n)])
        self.layer2 = nn.Sequential(*[_ResidualBlock(32 if i else 16, 32) for i in range(n)])
        self.layer3 = nn.Sequential(*[_ResidualBlock(64 if i else 32, 64) for i in range(n)])
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, h, w]."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return cast(Tensor, self.linear(h.mean((2, 3))))


class _ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.stride, self.grow = (1, 0) if c_in == c_out else (2, (c_out - c_in) // 2)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(h + F.pad(shortcut, (0, 0, 0, 0, self.grow, self.grow)))
