"""Parts of `configs/inference.yaml`: cases that may fail one by one, flips, stitching, label maps of scores."""

import copy
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import torch
from monai.data import Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Compose, Invertd, MapTransform
from monai.transforms.traits import InvertibleTrait, LazyTrait

from monai_extra_losses.bundle.error_text import first_cause
from monai_extra_losses.bundle.hysteresis import scores_of_what_is_kept
from monai_extra_losses.data.checks import TOLERANCE, corner_distance_mm
from monai_extra_losses.data.errors import CasesFailed, DatasetError, StartUpRefused
from monai_extra_losses.data.regions import painting_order
from monai_extra_losses.data.storage import takes_no_more

logger = logging.getLogger(__name__)


_COPIES_OF_SCORES = 6  # on the way from the windows to the label map: flips, the grid of the file, probabilities


class CasesToSegment(Dataset):
    """Cases that are loaded one by one; one that cannot be loaded does not stop the others.

    Returns the case as `transform` makes it; or, if that fails, its name `case` and the sentence `problem`.
    """

    def _transform(self, index: int) -> Any:
        item = self.data[index]
        try:
            return super()._transform(index)
        except Exception as error:
            return {"case": item["case"], "problem": _sentence(error, item["image"][0])}


class CaseByCaseEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for cases that may fail, whatever goes wrong: while one is loaded, in the network, in the
    postprocessing and in what handlers do before the iteration ends. A full disk ends them all.

    Its output is empty for a case that failed; `failures` has the sentence.

    Args:
        pass_over: go on with the other cases; False ends the program with the sentence.
        options: of `SupervisedEvaluator`.

    Raises:
        CasesFailed: by `run()`, without `pass_over`.
    """

    def __init__(self, pass_over: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.pass_over = pass_over
        self.failures: dict[str, str] = {}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        (case,) = batchdata["case"]
        if "problem" in batchdata:
            return self._passed_over(case, batchdata["problem"][0])
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            if isinstance(first_cause(error), torch.OutOfMemoryError):  # MONAI wraps that of a transform
                torch.cuda.empty_cache()
                advice = "--stitch_on cpu" if self.pass_over else "--device cpu"
                return self._passed_over(case, f"{case}: expected a volume that fits into the GPU; give {advice}.")
            if takes_no_more(error):
                raise  # the other cases would only take time until they fail as well
            return self._passed_over(case, _sentence(error, case))

    def _passed_over(self, case: str, problem: str) -> list[Any]:
        if not self.pass_over:
            raise CasesFailed(problem) from None
        logger.warning(f"{case}: not segmented")  # the end says why
        self.failures[case] = problem
        self.state.batch = []
        return []


def _sentence(error: BaseException, what: str) -> str:
    """Of an error that ended a case."""
    logger.debug("The error behind the sentence", exc_info=True)
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, DatasetError):
        cause = cause.__cause__
    if isinstance(cause, DatasetError):
        return str(cause)
    if isinstance(cause, OSError) and cause.strerror:
        file = f" ({cause.filename})" if cause.filename else ""
        return f"{what}: expected to read and write its files, got: {cause.strerror.lower()}{file}."
    return f"{what}: expected a volume that can be segmented, got {cause!r}."


class CaseInferer(Inferer):
    """Scores of a volume (1,C,X,Y,Z) by a sliding window: averaged over flips, and stitched where there is memory.

    With flips, the probabilities of the volume and of all its mirror images along `flips` are averaged, 2, 4 or 8 of
    them, and returned as scores that have these probabilities. The average is taken axis by axis, so that a flipped
    volume has, to the last bit, the flipped scores.

    Args:
        sliding_window: predicts one volume.
        num_channels: C.
        flips: axes of the volume, among 0, 1 and 2.
        sigmoid: the channels are regions, and not classes that exclude each other.
        stitch_on: "device" (of the input) or "cpu"; None: on the CPU where six times the scores, on the larger of the
            network's and the file's grid, exceed the free memory of the GPU.
    """

    def __init__(
        self,
        *,
        sliding_window: SlidingWindowInferer,
        num_channels: int,
        flips: Sequence[int] = (),
        sigmoid: bool = False,
        stitch_on: str | None = None,
    ) -> None:
        super().__init__()
        self.sliding_window = sliding_window
        self.num_channels = num_channels
        self.flips = tuple(flips)
        self.sigmoid = sigmoid
        self.stitch_on = stitch_on

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Scores of `inputs`, on the device where they were stitched."""
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        device = self._stitching_device(inputs)

        def scores(x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.sliding_window(x, network, *args, device=device, **kwargs))

        if self.flips:
            result = scores_of(self._mean_over_flips(volume, scores, self.flips), regions=self.sigmoid)
        else:
            result = scores(volume)
        if isinstance(inputs, MetaTensor):
            result = MetaTensor(result).copy_meta_from(inputs, copy_attr=False)
        return result

    def with_patch(self, patch_size: Sequence[int]) -> Self:
        """The same with windows of another size."""
        changed = copy.copy(self)
        changed.sliding_window = copy.copy(self.sliding_window)
        changed.sliding_window.roi_size = tuple(patch_size)
        changed.sliding_window.roi_weight_map = None  # of the other size, where it was kept
        return changed

    def _mean_over_flips(
        self, volume: torch.Tensor, scores: Callable[[torch.Tensor], torch.Tensor], axes: Sequence[int]
    ) -> torch.Tensor:
        if not axes:
            return probabilities_of(scores(volume.contiguous()), regions=self.sigmoid, dim=1)
        *others, axis = axes
        # a + b = b + a holds in floating point, and a sum of eight terms in another order does not
        mean = self._mean_over_flips(volume, scores, others)
        mean += self._mean_over_flips(volume.flip(axis + 2), scores, others).flip(axis + 2)
        return mean.mul_(0.5)

    def _stitching_device(self, inputs: torch.Tensor) -> torch.device:
        if self.stitch_on == "cpu":
            return torch.device("cpu")
        if self.stitch_on is None and inputs.device.type == "cuda":
            voxels = inputs.shape[2:].numel()
            if isinstance(inputs, MetaTensor) and "spatial_shape" in inputs.meta:
                voxels = max(voxels, int(torch.as_tensor(inputs.meta["spatial_shape"]).prod()))
            if _COPIES_OF_SCORES * 4 * self.num_channels * voxels > _free_memory(inputs.device):
                return torch.device("cpu")
        return inputs.device


def probabilities_of(scores: torch.Tensor, *, regions: bool, dim: int = 0) -> torch.Tensor:
    """Probabilities in float32: of regions each by itself, else of classes, along `dim`, that exclude each other."""
    return scores.float().sigmoid() if regions else scores.float().softmax(dim=dim)


def scores_of(probabilities: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Scores that have these probabilities: softmax(log(p)) = p and sigmoid(logit(p)) = p."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return probabilities.logit(eps=1e-7) if regions else probabilities.clamp_min(tiny).log()


def _free_memory(device: torch.device) -> int:
    """Bytes that the GPU has left, with what torch keeps for itself and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class InvertGeometryd(Invertd):
    """Brings scores to the grid of the file: MONAI's `Invertd` of the transforms that move voxels, and of no other.

    Scores share the image's geometry and not its intensities, so that whatever changes intensities must never be
    inverted on them. A transform moves voxels where MONAI can carry it out lazily (`LazyTrait`), which takes an affine
    matrix or a grid that describes it: all of MONAI's for space, crops and padding can.

    Args:
        keys: of the scores.
        transform: the preprocessing of the image.
        orig_keys: key of the image.
        nearest_interp: interpolate with nearest neighbours, whatever the preprocessing did.

    Raises:
        DatasetError: scores of NaN, of which the best class would be the background.
        StartUpRefused: scores that are not on the grid of the file afterwards, for a transform of the preprocessing
            moved voxels in a way that cannot be inverted.
    """

    def __init__(
        self, keys: str | Sequence[str], transform: Compose, orig_keys: str, nearest_interp: bool = False
    ) -> None:
        self.moving = list(_moving_voxels(transform))
        super().__init__(keys, Compose(self.moving), orig_keys=orig_keys, nearest_interp=nearest_interp)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the scores on the grid of the file into a copy of `data`."""
        changed = cast(dict[Hashable, Any], super().__call__(data) if self.moving else dict(data))
        for key in self.key_iterator(changed):
            _refuse_no_numbers(changed[key])
            _refuse_other_grid(changed[key])
        return changed


def _moving_voxels(transform: Any) -> Iterator[Any]:
    if type(transform) is Compose:  # itself lazy, whatever is in it
        for part in transform.transforms:
            yield from _moving_voxels(part)
    elif isinstance(transform, LazyTrait) and isinstance(transform, InvertibleTrait):
        yield transform


def _refuse_no_numbers(scores: MetaTensor) -> None:
    voxels = int(scores.as_tensor().isnan().any(dim=0).sum())
    if voxels:
        file = scores.meta.get("filename_or_obj", "the image")
        raise DatasetError(
            f"{file}: expected numbers as scores, got NaN in {voxels} voxels; "
            "half precision may overflow (--amp False), else look at the intensities and the weights."
        )


def _refuse_other_grid(scores: MetaTensor) -> None:
    meta = scores.meta
    if "spatial_shape" not in meta or "original_affine" not in meta:  # no file
        return
    shape = tuple(torch.as_tensor(meta["spatial_shape"]).tolist())
    expected = torch.as_tensor(meta["original_affine"]).double().numpy()
    found = scores.affine.double().numpy()
    spacing = (expected[:3, :3] ** 2).sum(axis=0) ** 0.5
    if tuple(scores.shape[1:]) != shape or corner_distance_mm(shape, found, expected) > TOLERANCE * spacing.min():
        raise StartUpRefused(
            f"Expected scores on the grid of {meta.get('filename_or_obj', 'the image')}, {shape}, got "
            f"{tuple(scores.shape[1:])}{' in another place' if tuple(scores.shape[1:]) == shape else ''}; a transform "
            "of the preprocessing moves voxels and cannot be inverted: take one that is lazy and invertible in MONAI's "
            "sense (LazyTransform, InvertibleTransform)."
        )


class SegmentationOfScoresd(MapTransform):
    """Scores (C,X,Y,Z) -> label map (1,X,Y,Z) in their place, and where asked their probabilities (C,X,Y,Z) beside it.

    Classes that exclude each other: the best one per voxel, and the softmax.

    Regions: each is there where its sigmoid is 0.5 and more. A voxel gets the label value that lies in just these.
    Where no value does, or several do, the regions paint over each other as nnU-Net's do: those with most label values
    first, equals in their listed order, each with the label value that fewest regions hold (the smallest of equals).
    For the regions of BraTS, whole {1, 2, 3}, core {2, 3} and enhancing {3}, these are 1, 2 and 3, so that an enhancing
    voxel outside the core is still enhancing. With `order` they paint in their listed order, each with its value there
    where that is one of its own. The background, 0, is where no region is.

    Args:
        keys: of the scores.
        labels: label value of each class; with regions, all label values.
        written: the value to write for each of `labels`.
        regions: name -> label values, in the order of the channels; None for classes.
        order: label value that each region paints, `regions_class_order` of nnU-Net; None: as above.
        probabilities: key that they get; None leaves them out.
        hysteresis: low and high threshold of `HysteresisKeep`, which then decides what is there; None: as above.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        *,
        labels: Sequence[int],
        written: Sequence[int],
        regions: Mapping[str, Sequence[int]] | None = None,
        order: Sequence[int] | None = None,
        probabilities: str | None = None,
        hysteresis: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.order = order
        self.hysteresis = hysteresis
        self.labels = list(labels)
        self.written = list(written)
        self.regions = None if regions is None else [frozenset(values) for values in regions.values()]
        self.probabilities = probabilities

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the label map, and the probabilities, into a copy of `data`."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            scores: MetaTensor = changed[key]
            values = scores.as_tensor()
            decided = values
            if self.hysteresis is not None:
                decided = scores_of_what_is_kept(values, self.hysteresis, regions=self.regions is not None)
            classes = decided.argmax(dim=0) if self.regions is None else self._classes_of_regions(decided)
            table = torch.tensor(self.written, dtype=torch.int64, device=values.device)
            changed[key] = MetaTensor(table[classes][None], meta=scores.meta)
            if self.probabilities is not None:
                found = probabilities_of(values, regions=self.regions is not None)
                changed[self.probabilities] = MetaTensor(found, meta=scores.meta)
        return changed

    def _classes_of_regions(self, scores: torch.Tensor) -> torch.Tensor:
        """Index into `labels` per voxel."""
        assert self.regions is not None  # for the type checker
        inside = scores >= 0  # sigmoid(0) = 0.5
        classes = torch.full(scores.shape[1:], self.labels.index(0), device=scores.device)
        for number, label in painting_order(self.regions, self.labels, self.order):
            classes[inside[number]] = self.labels.index(label)
        patterns = [tuple(label in region for region in self.regions) for label in self.labels]
        for number, pattern in enumerate(patterns):
            if patterns.count(pattern) == 1:
                there = torch.tensor(pattern, device=scores.device)
                classes[(inside == there.view(-1, 1, 1, 1)).all(dim=0)] = number
        return classes
