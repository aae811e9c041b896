"""Peak memory of a step on the CPU, for the tests and the benchmark."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_extra_bytes(step: Callable[[], object]) -> int:
    """Highest sum of live allocations during a step, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
