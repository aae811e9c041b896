"""The loops that numba compiles: equal to the definitions of their terms, whatever the labels, weights and threads."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from memory import peak_extra_bytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from monai_extra_losses import ComboLoss, CrossEntropyLoss, DiceTopKLoss, FusedDiceCELoss, FusedDiceLoss
from monai_extra_losses.ops import plan as plans
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.formulas import CrossEntropyFormula, FocalFormula
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.terms import CountSums, OutcomeSums, TargetSums, Term, TrueClassSums, VoxelMap

numba = pytest.importorskip("numba", reason="numba is not installed: pip install 'monai-extra-losses[fast]'")

from monai_extra_losses.ops.kernels import jit, jit_loops  # noqa: E402  import numba
from monai_extra_losses.ops.kernels import threads as threads_of_loops  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"to_onehot_y": True, "softmax": True}
each = pytest.mark.parametrize
LOOPS = {slab.__name__: slab for slab in jit._SLABS}
of_every_loop = each("name", list(LOOPS))


@pytest.fixture(autouse=True)
def _loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops take what they can, without their check."""
    monkeypatch.setattr(plans, "_NUMBA", "1")


def cases_of(name: str) -> list[tuple[int, list[Term]]]:
    """Numbers of channels, and terms to compute in one pass: all that the loops know, and each alone."""
    found: list[tuple[int, list[Term]]] = []
    for terms, channels in jit.known_to(LOOPS[name]):
        found += [(channels, list(terms)), *((channels, [term]) for term in terms if term.reads_scores)]
    return found


def data_of(channels: int, *, spatial: tuple[int, ...] = (5, 3, 7), size: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels, and weights of which some are 0."""
    generator = torch.Generator().manual_seed(channels)
    scores = size * torch.randn(2, channels, *spatial, generator=generator)
    labels = torch.randint(0, channels, (2, 1, *spatial), generator=generator).float()
    mask = torch.rand(2, 1, *spatial, generator=generator) * 2
    return scores, labels, mask * (mask > 0.5)


def computed(data: CallData, terms: Sequence[Term], *, loops: bool) -> tuple[list[Tensor], Tensor]:
    """The results, and the gradient of a sum of them, by loops, or in float64 by the definitions."""
    scores = data.scores.detach().clone() if loops else data.scores.detach().double()
    own = data.with_scores(scores.requires_grad_())
    if loops:
        assert plans.plan(own, terms, keeps=True).slab in LOOPS.values()
        results = list(fused_sums(own, terms))
    else:
        results = [term.definition(own.whole()) for term in terms]
        results = [r.view(term.shape(scores)) for term, r in zip(terms, results, strict=True)]
    reading = [r for term, r in zip(terms, results, strict=True) if term.reads_scores]
    total = sum((r * torch.linspace(0.5, 1.5, r.shape[1]).view(-1, *[1] * (r.ndim - 2))).sum() for r in reading)
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, own.scores)
    # of a sum over all classes only the sum is promised
    one = [not getattr(term, "by_class", True) for term in terms]
    return [r.detach().sum(-1) if whole else r.detach() for r, whole in zip(results, one, strict=True)], gradient


def assert_equal(data: CallData, terms: Sequence[Term], rtol: float = 3e-6) -> None:
    results, gradient = computed(data, terms, loops=True)
    expected, slope = computed(data, terms, loops=False)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), value, rtol=rtol, atol=rtol * value.abs().max().item())
    eps = max(rtol, torch.finfo(data.scores.dtype).eps)
    torch.testing.assert_close(gradient.double(), slope, rtol=eps, atol=eps * slope.abs().max().item())


@each(
    "name, given",
    [
        ("exp", np.linspace(-87, 88, 100_001)),
        ("expm1", -np.logspace(-20, 1.9, 100_001)),
        ("log", np.logspace(-37, 38, 100_001)),
        ("log", np.linspace(0.5, 2, 100_001)),
        ("log1p", np.concatenate([-np.logspace(-20, np.log10(0.5), 50_000), np.logspace(-20, 0, 50_000)])),
    ],
)
def test_functions_of_the_loops(name: str, given: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
    """Relative errors below 2e-7, about three times what float32 rounds."""
    function = getattr(jit_loops, name)
    x = given.astype(np.float32)

    @numba.njit  # type: ignore[untyped-decorator]
    def over(x, out):  # type: ignore[no-untyped-def]
        for i in range(x.shape[0]):
            out[i] = function(x[i])

    found = np.empty_like(x)
    over(x, found)
    expected = getattr(np, name)(x.astype(np.float64))
    nonzero = expected != 0
    assert np.abs(found[nonzero] / expected[nonzero] - 1).max() < 2e-7
    assert not found[~nonzero].any()
    edge = np.array([np.nan, -np.inf, np.inf], np.float32)
    over(edge, out := np.empty_like(edge))
    assert np.isnan(out[0])
    assert name in ("log", "log1p") or out[1] == getattr(np, name)(-np.inf)
    assert name not in ("exp", "log") or out[2] == np.inf


@of_every_loop
@each("weights", ["none", "mask", "bool mask", "ignore_index", "ignored class"])
def test_loops_equal_the_definitions(name: str, weights: str) -> None:
    for channels, terms in cases_of(name):
        scores, labels, mask = data_of(channels)
        given = {"mask": mask, "bool mask": mask > 0}.get(weights)
        ignore_index = {"ignore_index": 255, "ignored class": 1}.get(weights)
        if weights == "ignore_index":
            labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 255
        assert_equal(CallData(scores, labels, given, True, ignore_index), terms)


@of_every_loop
@each("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int64, torch.bool])
def test_labels_of_any_dtype(name: str, dtype: torch.dtype) -> None:
    for channels, terms in cases_of(name)[:1]:
        scores, labels, _ = data_of(channels)
        labels = labels.clamp_max(1) if dtype == torch.bool else labels
        assert_equal(CallData(scores, labels.to(dtype), None, True, None), terms)


@of_every_loop
@each("dtype", [torch.bfloat16, torch.float16])
def test_scores_in_half_precision(name: str, dtype: torch.dtype) -> None:
    for channels, terms in cases_of(name)[:1]:
        scores, labels, mask = data_of(channels)
        for given in (None, mask):
            assert_equal(CallData(scores.to(dtype), labels, given, True, None), terms)


@of_every_loop
def test_views_and_other_strides(name: str) -> None:
    """Parts of a larger tensor are read where they lie; what is channels last is left to plain torch."""
    channels, terms = cases_of(name)[0]
    scores, labels, _ = data_of(channels, spatial=(4, 3, 6))
    wide = torch.cat([scores, scores], 1)[:, channels:]
    assert not wide.is_contiguous()
    assert_equal(CallData(wide, labels, None, True, None), terms)
    assert_equal(CallData(scores, torch.cat([labels, labels], 1)[:, 1:], None, True, None), terms)
    flipped = CallData(scores.contiguous(memory_format=torch.channels_last_3d), labels, None, True, None)
    assert plans.plan(flipped, terms, keeps=True).slab not in LOOPS.values()


@of_every_loop
def test_the_number_of_threads_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_CHUNK", 64)
    monkeypatch.setattr(threads_of_loops, "_WORTH_TWO", 2)
    threads = torch.get_num_threads()
    found = []
    for channels, terms in cases_of(name)[:1]:
        scores, labels, mask = data_of(channels, spatial=(7, 11, 13))
        for given in (None, mask):
            data = CallData(scores, labels, given, True, None)
            assert_equal(data, terms)
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                try:
                    results, gradient = computed(data, terms, loops=True)
                finally:
                    torch.set_num_threads(threads)
                found.append([*results, gradient])
            for others in found[-2:]:
                assert all(torch.equal(one, other) for one, other in zip(found[-3], others, strict=True))


def test_nothing_costs_nothing() -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        scores = torch.zeros(shape)
        data = CallData(scores, torch.zeros(shape[0], 1, *shape[2:]), None, True, None)
        slab = jit._whole(data, [CountSums("softmax"), TargetSums()])
        assert all(bool((result == 0).all()) for result in slab.results([CountSums("softmax"), TargetSums()]))


def test_calls_from_several_threads() -> None:
    """As of several models in one process: each gets its own result."""
    scores, labels, _ = data_of(3, spatial=(32, 32, 32))
    loss = FusedDiceCELoss(**OPTIONS)
    inputs = [(k + 1) * scores / 4 for k in range(8)]
    expected = [loss(x, labels) for x in inputs]
    found: list[Tensor | None] = [None] * len(inputs)

    def call(k: int) -> None:
        for _ in range(5):
            found[k] = loss(inputs[k], labels)

    workers = [threading.Thread(target=call, args=(k,)) for k in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(one is not None and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those of its parent do not live on in it, and a call must not wait for them."""
    code = (
        "import os, torch; from monai_extra_losses import FusedDiceLoss\n"
        "from monai_extra_losses.ops.kernels import jit, threads\n"
        "jit._CHUNK, threads._WORTH_TWO = 64, 2; torch.set_num_threads(2)\n"
        "loss = FusedDiceLoss(softmax=True, to_onehot_y=True)\n"
        "x, t = torch.randn(1, 3, 40, 40), torch.ones(1, 1, 40, 40); before = loss(x, t); child = os.fork();\n"
        "if child == 0: os._exit(0 if torch.equal(loss(x, t), before) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {**os.environ, "MONAI_EXTRA_LOSSES_NUMBA": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


def wrong_labels() -> list[Tensor]:
    labels = data_of(3)[1]
    found = []
    for value in (-1, 3, 0.5, torch.nan, torch.inf, 2.0**40):
        wrong = labels.clone()
        wrong[1, 0, 2, 1, 3] = value
        found.append(wrong)
    return [*found, found[0].long(), found[1].to(torch.uint8), found[5].long()]


def test_wrong_labels_are_refused() -> None:
    for loss in (FusedDiceLoss(**OPTIONS), FusedDiceLoss(to_onehot_y=True, sigmoid=True)):
        for labels in wrong_labels():
            with pytest.raises(ValueError, match="labels"):
                loss(data_of(3)[0], labels)
    with pytest.raises(ValueError, match="labels"):
        FusedDiceLoss(**OPTIONS)(data_of(2)[0], data_of(3)[1])


@each("channels, softmax", [(2, True), (3, True), (12, True), (3, False)])
def test_nan_stays_and_ignored_nan_is_nothing(channels: int, softmax: bool) -> None:
    scores, labels, mask = data_of(channels)
    loss = DiceTopKLoss(to_onehot_y=True, softmax=True) if softmax else FusedDiceLoss(to_onehot_y=True, sigmoid=True)
    for k in range(channels):
        broken = scores.clone()
        broken[0, k, 2, 1, 3] = torch.nan
        assert loss(broken, labels).isnan()
    for value in (torch.nan, torch.inf, -torch.inf):
        broken, given = scores.clone().requires_grad_(), labels.clone()
        with torch.no_grad():
            broken[:, :, 2], given[:, :, 2] = value, 99
        weights = mask.clone()
        weights[:, :, 2] = 0
        found = loss(broken, given, weights)
        kept = [torch.cat([x[:, :, :2], x[:, :, 3:]], 2) for x in (scores, labels, weights)]
        torch.testing.assert_close(found, loss(*kept), rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(found, broken)
        assert gradient.isfinite().all()
        assert (gradient[:, :, 2] == 0).all()


@each("channels", [3, 12])
def test_what_leaves_the_range_of_float32_is_left_to_plain_torch(channels: int) -> None:
    """log(1 - p) of p within 1e-30 of 1."""
    scores, labels, mask = data_of(channels, size=40)
    terms = [OutcomeSums("softmax", CrossEntropyFormula()), CountSums("softmax"), TargetSums()]
    for given in (None, mask):
        assert_equal(CallData(scores, labels, given, True, None), terms)
    exact = ComboLoss(**OPTIONS)(scores.double(), labels)
    torch.testing.assert_close(ComboLoss(**OPTIONS)(scores, labels).double(), exact, rtol=1e-6, atol=0)


@each("channels", [3, 12])
def test_a_map_with_factors(channels: int) -> None:
    scores, labels, mask = data_of(channels)
    for factors in (torch.rand(channels).double(), torch.rand(2, channels).double()):
        terms = [VoxelMap(TrueClassSums("softmax", FocalFormula(2.0)), positive=factors), CountSums("softmax")]
        for given in (None, mask):
            assert_equal(CallData(scores, labels, given, True, None), terms)
        terms = [VoxelMap(OutcomeSums("sigmoid", FocalFormula(2.0)), factors, factors.flip(-1)), CountSums("sigmoid")]
        assert_equal(CallData(scores, labels, None, True, None), terms)


@each("channels", [2, 3, 12])
def test_confident_voxels_keep_their_digits(channels: int) -> None:
    """log p_t, and the gradient of its power, where 1 - p_t is below what float32 tells from 0."""
    labels = torch.zeros(1, 1, 40)
    scores = torch.linspace(5, 25, 40).repeat(channels, 1).unsqueeze(0)
    scores[:, 1:] = 7.0
    for formula in (CrossEntropyFormula(), FocalFormula(0.5)):
        terms = [TrueClassSums("softmax", formula)]
        data = CallData(scores, labels, None, True, None)
        _, gradient = computed(data, terms, loops=True)
        _, expected = computed(data, terms, loops=False)
        torch.testing.assert_close(gradient[:, 0].double(), expected[:, 0], rtol=2e-5, atol=1e-16)


def test_the_extra_memory_is_the_gradient() -> None:
    """Of float32 scores of which every voxel counts; with a mask a slab of weights more."""
    for channels in (2, 14):
        scores, labels, mask = data_of(channels, spatial=(96, 96, 96))
        leaf = scores.requires_grad_()
        size = 4 * scores.numel()
        loss = FusedDiceCELoss(**OPTIONS)
        assert peak_extra_bytes(lambda: loss(leaf, labels).backward()) < 1.02 * size  # noqa: B023
        assert peak_extra_bytes(lambda: loss(leaf, labels, mask).backward()) < 1.25 * size  # noqa: B023
        for dtype in (torch.bool, torch.float16, torch.int8):
            given = (labels > 0).to(dtype)
            assert peak_extra_bytes(lambda: loss(leaf, given).backward()) < 1.25 * size  # noqa: B023


def test_loops_show_that_they_are_right_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What deviates, or does not compile, is left to plain torch, with one warning."""
    scores, labels, _ = data_of(3)
    loss = CrossEntropyLoss(**OPTIONS)
    expected = loss(scores, labels)
    monkeypatch.setattr(plans, "_NUMBA", "")
    true_loops = jit.JitSoftmaxSlab.loops

    def off_by_one(*arguments: object) -> None:
        true_loops[0](*arguments)
        sums = arguments[-4]
        assert isinstance(sums, np.ndarray)
        sums += 1

    def no_compiler(*arguments: object) -> None:
        raise RuntimeError("no compiler")

    faults: dict[str, Callable[..., None]] = {"deviate": off_by_one, "no compiler": no_compiler}
    for said, loop in faults.items():
        monkeypatch.setattr(jit.JitSoftmaxSlab, "loops", (loop, true_loops[1]))
        plans._agree.cache_clear()
        plans.agree.cache_clear()
        with pytest.warns(UserWarning, match=f"compiled loops .*{said}.*MONAI_EXTRA_LOSSES_NUMBA=0"):
            first = loss(scores, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = loss(scores, labels)
        assert first == second
        torch.testing.assert_close(first, expected)
    monkeypatch.setattr(jit.JitSoftmaxSlab, "loops", true_loops)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):  # whatever the first call is
        plans._agree.cache_clear()
        plans.agree.cache_clear()
        with warnings.catch_warnings(), context():
            warnings.simplefilter("error")
            assert loss(scores, labels) == expected
        assert plans._agree(jit, jit.JitSoftmaxSlab)


def test_the_check_is_nothing_to_the_hooks_of_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint computes again what it let go, and counts what autograd saves: both times the same."""
    monkeypatch.setattr(plans, "_NUMBA", "")
    scores, labels, _ = data_of(3)
    loss, leaf = CrossEntropyLoss(**OPTIONS), scores.clone().requires_grad_()
    plans._agree.cache_clear()
    plans.agree.cache_clear()
    value = checkpoint(lambda x: loss(2 * x, labels), leaf, use_reentrant=False)
    assert plans._agree.cache_info().currsize == 1
    (gradient,) = torch.autograd.grad(value, leaf)
    (alone,) = torch.autograd.grad(loss(2 * leaf, labels), leaf)
    assert torch.equal(gradient, alone)


def test_without_numba_plain_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, _ = data_of(3)
    loss = FusedDiceCELoss(**OPTIONS)
    expected = loss(scores, labels)
    used: list[object] = []
    monkeypatch.setattr(jit.JitSoftmaxSlab, "results", lambda *arguments: used.append(arguments))
    for patched in (("_NUMBA", "0"), ("_numba", lambda: None)):
        with monkeypatch.context() as patch:
            patch.setattr(plans, *patched)
            torch.testing.assert_close(loss(scores, labels), expected, rtol=1e-6, atol=0)
    assert not used


def test_a_broken_numba_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported, and what cannot compile, leaves the losses to plain torch with a warning."""
    scores, labels, _ = data_of(3)
    expected = FusedDiceLoss(**OPTIONS)(scores, labels)
    plans._numba.cache_clear()
    monkeypatch.setitem(sys.modules, "monai_extra_losses.ops.kernels.jit", None)
    monkeypatch.delattr("monai_extra_losses.ops.kernels.jit")
    with pytest.warns(UserWarning, match="run in plain torch: numba cannot be imported"):
        found = FusedDiceLoss(**OPTIONS)(scores, labels)
    plans._numba.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    code = (
        "import torch; from monai_extra_losses import FusedDiceLoss\n"
        "x, t = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4); t[..., 2:] = 1\n"
        "print(round(FusedDiceLoss(softmax=True, to_onehot_y=True)(x, t).item(), 4))"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "0.5"
    assert "compiled loops fail" in run.stderr


def test_loops_that_cannot_be_kept_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **options: object) -> Callable[[object], object]:
        def decorate(function: object) -> object:
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return function, options["nogil"]

        return decorate

    monkeypatch.setattr(jit_loops, "njit", njit)
    assert jit_loops._loop({"nsz"})(len) == (len, True)


def test_what_the_loops_lack_takes_the_kernels_in_plain_torch() -> None:
    scores, labels, _ = data_of(3)

    def own(log_pt: Tensor) -> Tensor:
        return log_pt.square()

    for terms in ([TrueClassSums("softmax", own)], [TrueClassSums("softmax", FocalFormula(2.0)), CountSums("sigmoid")]):
        assert plans.plan(CallData(scores, labels, None, True, None), terms, keeps=True).slab not in LOOPS.values()
    doubles = CallData(scores.double(), labels, None, True, None)
    assert plans.plan(doubles, [CountSums("softmax")], keeps=True).slab not in LOOPS.values()


@pytest.mark.slow
def test_the_contract_holds_without_numba() -> None:
    """In float32 too, as for those who have not installed it."""
    files = ["test_contract.py", "test_losses.py", "test_drop_in.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "MONAI_EXTRA_LOSSES_NUMBA": "0"}
    run = subprocess.run(
        [*command, *(str(ROOT / "tests" / file) for file in files)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
