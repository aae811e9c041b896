"""The last 1x1x1 convolution of a network and a loss in one pass, so that the scores are never there as a whole."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_extra_losses.losses.checks import ShapeMismatchError, plain
from monai_extra_losses.losses.geometry import in_deep_supervision
from monai_extra_losses.losses.weighted_sum import AroundLoss, reads
from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.numbers import has_numbers

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class HeadLoss(AroundLoss):
    """A loss of features: the network's last 1x1x1 convolution and the loss of its scores, in one pass.

    L(W f + b, target)

    The scores of one slab at a time are computed, forward and backward: neither the (B, C, *spatial) scores nor their
    gradient exist, which is most of the memory of a training at hundreds of classes. Value and gradients, of features,
    weight and bias, are those of `loss(head(features), target)`; at few classes it is slower. The scores are computed
    in float32 at least, in half precision too.

    Where torch.compile or a transform of torch.func traces, or the target requires a gradient, it is
    `loss(head(features), target)`, at the memory of that.

    Args:
        head: the convolution: kernel 1, stride 1, no padding, one group, with bias or without, frozen or not. It stays
            a part of the network, too.
        loss: a loss of this package whose terms go through the pass over slabs: region, distribution and compound
            losses, and boundary losses but those that measure the prediction. Others read all scores at once, and are
            refused when they are called, as are those with `other_act`.

    Shapes:
        features (B, K, *spatial), of any float dtype; target, mask and distance as of the loss. The scores of a network
        in evaluation mode (see `HeadlessNetwork`), (B, C, *spatial), go to the loss as they are.

    Raises:
        TypeError: a head that is no convolution, a loss that is no module.
        ValueError: a head of another kernel, stride, padding or number of groups, or with hooks; a loss that reads all
            scores at once; a call by MONAI's DeepSupervisionLoss, whose levels have a head each.
        ShapeMismatchError: features of another number of channels than the head reads; else see the loss.

    Example:
        >>> import torch
        >>> from monai_extra_losses import FusedDiceCELoss
        >>> head = torch.nn.Conv2d(8, 200, kernel_size=1)
        >>> loss = HeadLoss(head, FusedDiceCELoss(to_onehot_y=True, softmax=True))
        >>> features = torch.randn(1, 8, 16, 16, requires_grad=True)
        >>> loss(features, torch.randint(0, 200, (1, 1, 16, 16))).backward()
        >>> features.grad.shape, head.weight.grad.shape
        (torch.Size([1, 8, 16, 16]), torch.Size([200, 8, 1, 1]))

    Reference: none; the memory of logits is saved so for language models by Hsu et al. 2024, arXiv:2410.10989.
    """

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"expected a loss that is a torch.nn.Module, got {type(loss).__name__}.")
        if not isinstance(head, Convolution):
            raise TypeError(_refusal("head", f"a {type(head).__name__}"))
        self.head = checked_head(head, "head")
        self.loss = loss

    def forward(
        self,
        features: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        distance: Tensor | None = None,
        skeleton: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            features: (B, K, *spatial), what the head reads.
            target: as of the loss.
            mask: as of the loss.
            distance: as of the loss, where it reads one.
            skeleton: as of the loss, where it reads one.
            cells: as of the loss, where it reads them.
        """
        optional = {"mask": mask, "distance": distance, "skeleton": skeleton, "cells": cells}
        given = {name: value for name, value in optional.items() if value is not None}
        for name in given:
            if name != "mask" and not reads(self.loss, name):
                raise ValueError(f"expected a loss that reads `{name}`, got {type(self.loss).__name__}: leave it out.")
        value: Tensor = self.loss(self._scores(plain("features", features), target), target, **given)
        return value

    def _scores(self, features: Tensor, target: Tensor) -> Tensor:
        head = self.head
        read, written = head.in_channels, head.out_channels
        if features.ndim != head.weight.ndim:
            raise ShapeMismatchError(
                f"expected features (B, {read}, *spatial) with {head.weight.ndim - 2} spatial axes as the head, "
                f"got shape {tuple(features.shape)}."
            )
        skipped = isinstance(head, _Skipped)
        if not head.training and features.shape[1] == written and (skipped or written != read):
            return features
        if features.shape[1] != read:
            raise ShapeMismatchError(
                f"expected features of the {read} channels that the head reads, got shape {tuple(features.shape)}: "
                "the network is to return what its last convolution reads, as HeadlessNetwork makes it."
            )
        if not features.is_floating_point():
            raise TypeError(f"expected floating-point features, got {features.dtype}.")
        if in_deep_supervision():
            raise ValueError(
                "expected one set of features, got those of a level of MONAI's DeepSupervisionLoss: each level has a "
                "head of its own; use the loss without HeadLoss there."
            )
        # the target of an engine's wrapper may be a label with maps
        differentiates_target = getattr(target, "requires_grad", False) and torch.is_grad_enabled()
        if not has_numbers(features) or differentiates_target:
            return convolved(head, features)
        return HeadScores.of(features, head.weight.flatten(1), head.bias)


class HeadlessNetwork(nn.Module):
    """A network that returns, in training mode, what its last 1x1x1 convolution reads; in evaluation mode its scores.

    For `HeadLoss`: the loss computes that convolution, `HeadlessNetwork.head`, itself. Parameters, and the state that
    `state_dict` gives and `load_state_dict` takes, are those of the network as it was.

    Args:
        network: a network that returns the result of that convolution: MONAI's DynUNet without deep supervision
            ("output_block.conv.conv"), SegResNet ("conv_final.2.conv"), BasicUNet ("final_conv"), SwinUNETR and UNETR
            ("out.conv.conv"), a torch.nn.Sequential (the number of its last module). It is used as it is, not copied.
        head: name of the module, as `network.named_modules()` has it.

    Raises:
        ValueError: no module of that name, or one that is no such convolution; deep supervision; in the first training
            step, a network that returns anything else than the result of the head.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 200, 1))
        >>> headless = HeadlessNetwork(network, head="1")
        >>> image = torch.zeros(1, 1, 8, 8, 8)
        >>> headless.train()(image).shape[1], headless.eval()(image).shape[1]
        (4, 200)
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        if head not in modules:
            convolutions = [name for name, module in modules.items() if _fault(module) is None]
            raise ValueError(
                f"expected the name of a module of {type(network).__name__}, got {head!r}; "
                f"its 1x1x1 convolutions are {', '.join(convolutions) or 'none'}."
            )
        checked_head(modules[head], head)
        if getattr(network, "deep_supervision", False):
            raise ValueError(
                f"expected {type(network).__name__} without deep supervision, got one with it: each level has a head "
                "of its own; set deep_supervision=False, or leave HeadLoss out."
            )
        self.network = network
        self.head_name = head
        self._proved = False
        if not isinstance(modules[head], _Skipped):
            modules[head].__class__ = _SKIPPED[type(modules[head])]
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def head(self) -> Convolution:
        """The last convolution: what `HeadLoss` takes."""
        head: Any = self.network.get_submodule(self.head_name)
        return head  # type: ignore[no-any-return]

    def scores(self, features: Tensor) -> Tensor:
        """The scores of features, (B, K, *spatial) -> (B, C, *spatial), as a whole."""
        return convolved(self.head, features)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The features in training mode, the scores in evaluation mode; arguments as of the network."""
        if self._proved or not self.training or torch.compiler.is_compiling():
            return self.network(*args, **kwargs)
        seen: list[Tensor] = []
        handle = self.head.register_forward_hook(lambda module, given, result: seen.append(result))
        try:
            result = self.network(*args, **kwargs)
        finally:
            handle.remove()
        if len(seen) != 1 or result is not seen[0]:
            raise ValueError(
                f"expected {type(self.network).__name__} to return the result of its head {self.head_name!r}, got "
                f"{'something else' if seen else 'a network that did not call it'}: an activation, deep supervision or "
                "another layer comes after it, and HeadLoss would not see that."
            )
        self._proved = True
        return result


def convolved(head: Convolution, features: Tensor) -> Tensor:
    """The scores of features, as a whole, whatever mode the head is in."""
    return _CONVOLVE[features.ndim](features, head.weight, head.bias)


class _Skipped(nn.Module):
    """A convolution that in training mode returns what it reads."""

    def forward(self, input: Tensor) -> Tensor:
        return input if self.training else super().forward(input)


class _SkippedConv1d(_Skipped, nn.Conv1d):
    pass


class _SkippedConv2d(_Skipped, nn.Conv2d):
    pass


class _SkippedConv3d(_Skipped, nn.Conv3d):
    pass


_SKIPPED: dict[type, type] = {nn.Conv1d: _SkippedConv1d, nn.Conv2d: _SkippedConv2d, nn.Conv3d: _SkippedConv3d}
_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def checked_head(module: nn.Module, name: str) -> Convolution:
    """The module, if it is a convolution that `HeadLoss` can compute."""
    fault = _fault(module)
    if fault is not None:
        raise ValueError(_refusal(name, fault))
    return module  # type: ignore[return-value]


def _refusal(name: str, got: str) -> str:
    return f"expected a 1x1x1 convolution (Conv1d, Conv2d or Conv3d) as {name}, got {got}."


def _fault(module: nn.Module) -> str | None:
    """What keeps a module from being a head, in words."""
    if type(module) not in (*_SKIPPED, *_SKIPPED.values()):
        return f"a {type(module).__name__}"
    assert isinstance(module, Convolution)
    if any(n != 1 for n in (*module.kernel_size, *module.stride)):
        return f"one with kernel {module.kernel_size} and stride {module.stride}"
    if module.padding not in ("valid", "same") and any(n != 0 for n in module.padding):
        return f"one with padding {module.padding}"
    if module.groups != 1:
        return f"one with {module.groups} groups"
    if module._forward_hooks or module._forward_pre_hooks:
        return "one with forward hooks, which HeadLoss would not call"
    return None


def _without_prefix(
    module: nn.Module, state: MutableMapping[str, Any], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    """Name the state as the network does."""
    _rename(state, f"{prefix}network.", prefix)


def _with_prefix(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *rest: object) -> None:
    """Name a state of the network as torch finds it."""
    _rename(state, prefix, f"{prefix}network.")


def _rename(state: MutableMapping[str, Any], before: str, after: str) -> None:
    for name in [name for name in state if name.startswith(before)]:
        state[after + name.removeprefix(before)] = state.pop(name)
