"""Peak memory of a step on the CPU, for the tests and the benchmark."""

from collections.abc import Callable

from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, RecordScope, _ExperimentalConfig
from torch.autograd import _disable_profiler, _enable_profiler, _prepare_profiler


def peak_extra_bytes(step: Callable[[], object]) -> int:
    """Highest sum of live allocations during a step, above what was there before.

    As `torch.profiler` with `profile_memory=True` tells it, but without its record of every operation, which takes
    longer than the step.
    """
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())
    _prepare_profiler(config, {ProfilerActivity.CPU})
    _enable_profiler(config, {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE})
    try:
        step()
    finally:
        events = _disable_profiler().events()
    live = peak = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak > 0, "the profiler told of no allocation"
    return peak
