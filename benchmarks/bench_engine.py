"""Time of a training step in the bundle's engine against a bare PyTorch loop over the same loader, epoch by epoch.

    python benchmarks/bench_engine.py DATA_DIR [--epochs 5] [train options as --KEY VALUE]

After each epoch of the engine (which reports, schedules and watches) an epoch of the loop runs, with a copy of the
network and its optimizer, the same loss and the same loader. Validation and checkpoints count for neither. Prints
medians without the first epoch, their ratio, and the seconds from building the workflow to the first step.
"""

import argparse
import copy
import logging
import platform
import statistics
import tempfile
import time
import warnings
from datetime import date

import monai
import torch
from ignite.engine import Engine, Events

import monai_extra_losses
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.cli.runs import overrides_of


def bare_epoch(network, loss, optimizer, loader, device) -> float:
    """Seconds of an epoch."""
    start = time.perf_counter()
    network.train()
    for batch in loader:
        image, label = batch["image"].to(device), batch["label"].to(device)
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        value.item()  # a loop that prints its loss waits for it
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data set folder")
    parser.add_argument("--epochs", type=int, default=5)
    args, rest = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)

    with tempfile.TemporaryDirectory() as folder:
        options = {"dataset_dir": args.data, "bundle_root": folder, "epochs": args.epochs, "val_interval": 10**6}
        configs = [str(monai_extra_losses.config_dir() / f"{name}.yaml") for name in ("train", "losses")]
        built = time.perf_counter()
        workflow = SegmentationWorkflow(configs, **options | overrides_of(rest))
        workflow.initialize()
        get = workflow.parser.get_parsed_content
        trainer, network, device = get("train::trainer"), get("built_network"), get("device")
        loss, loader = get("training_loss"), get("train::dataloader")
        bare_network = copy.deepcopy(network)
        bare_optimizer = type(get("optimizer"))(bare_network.parameters(), lr=get("optimizer").param_groups[0]["lr"])
        times: dict[str, list[float]] = {"engine": [], "bare loop": []}
        started = first_step = 0.0

        @trainer.on(Events.EPOCH_STARTED)
        def start(_: Engine) -> None:
            nonlocal started
            started = time.perf_counter()

        @trainer.on(Events.ITERATION_COMPLETED(once=1))
        def note_first(_: Engine) -> None:
            nonlocal first_step
            first_step = time.perf_counter() - built

        # Iterations of the last epoch end before validation and checkpoints, which EPOCH_COMPLETED would include.
        @trainer.on(Events.ITERATION_COMPLETED(every=len(loader)))
        def compare(_: Engine) -> None:
            times["engine"].append(time.perf_counter() - started)
            times["bare loop"].append(bare_epoch(bare_network, loss, bare_optimizer, loader, device))

        workflow.run()
        workflow.finalize()
    median = {key: statistics.median(values[1:]) / len(loader) for key, values in times.items()}
    ratios = [engine / bare for engine, bare in zip(*times.values(), strict=True)][1:]
    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    print(f"{device} {platform.machine()}, {torch.get_num_threads()} threads, {versions}, {date.today()}")
    for key, seconds in median.items():
        print(f"{key:>10}: {seconds:.4f} s per step")
    print(f"     ratio: {statistics.median(ratios):.3f} (epochs: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"{first_step:.1f} s from building the workflow to the end of the first step, data check and cache included")


if __name__ == "__main__":
    main()
