"""The commands of `monai-extra-losses`, thin over the bundle's configs. Heavy imports wait until a command runs.

Longer than most, because every command has its options and its help here.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

import monai_extra_losses
from monai_extra_losses.bundle.foreign_warnings import without_pointless_warnings
from monai_extra_losses.bundle.options import literal, path_of, run_folders, yes_or_no
from monai_extra_losses.bundle.running import config_files, run_configs
from monai_extra_losses.cli.endings import stops_in_a_sentence
from monai_extra_losses.cli.runs import check_overrides, overrides_of
from monai_extra_losses.cli.several_runs import CommandOfRuns
from monai_extra_losses.compare.plan import OVERLAYS
from monai_extra_losses.data.errors import DatasetError, StartUpRefused
from monai_extra_losses.data.layouts import CASE
from monai_extra_losses.versions import version_of

_DEMO_CASES = 24


_DEMO_EPOCHS = 100


_DEMO_PATIENCE = """\
The organ is found within the first epochs. The lesions are small: with dice_ce their Dice stays at 0.000 for about 25
epochs, and then rises. Every line ends with the time that is left.
"""


_WIDTH = 100


# What a stopped command needs to go on, after its own words.
_GO_ON = {
    "train": ("--resume", "True"),
    "compare": (),
    "evaluate": (),
    "infer": (),
    "prepare": (),
    "pool": (),
    "demo": (),
    "check": (),
}


_IN_SEVERAL_PROCESSES = ("train", "evaluate")


class _GivenPath(click.ParamType[Path]):
    """A file or folder, whatever its name is."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return path_of(param.opts[0] if param else "path", value)


_folder = _GivenPath()


_with_overrides: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}


class _Commands(click.Group):
    """Commands that say how to go on when they are stopped."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        words = ctx.meta[__name__]
        command = next((word for word in words if not word.startswith("-")), "")
        if (count := _processes()) > 1 and command not in _IN_SEVERAL_PROCESSES:
            raise StartUpRefused(
                f"Expected one process for {command}, got {count} by torchrun; only train and evaluate take several."
            )
        with stops_in_a_sentence(lambda: _how_to_go_on(command, words)):
            return super().invoke(ctx)


def _how_to_go_on(command: str, words: Sequence[str]) -> str:
    """The line that goes on with a command that was stopped; "" for one that leaves nothing to go on with."""
    if command not in _GO_ON:
        return ""
    anew, more = {"--overwrite"} if command in ("prepare", "pool") else set(), _GO_ON[command]
    if _processes() > 1:  # how torchrun was called is not known here
        return f"What was finished is kept; go on with the same call{f' and {shlex.join(more)}' if more else ''}."
    line = shlex.join(["monai-extra-losses", *(word for word in words if word not in anew), *more])
    return f"What was finished is kept; go on with:\n  {line}"


def _processes() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Train, evaluate and run 3D segmentation networks on NIfTI volumes with the losses of monai_extra_losses.

    Exit codes: 0 done; 1 refused, or problems found, with a sentence that says what; 2 wrong usage of a command; 130
    and 143 stopped by Ctrl-C or SIGTERM, with the line that goes on.
    """


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what to train with."""
    for option in (
        click.option("--epochs", type=int, help="Epochs to train  [default: as in train.yaml]."),
        click.option(
            "--with",
            "overlays",
            type=click.Choice(OVERLAYS),
            multiple=True,
            help="boundary_schedule: train `surface` as its paper does, the boundary loss taking over by and by; "
            "boundary_maps: measure distances once per volume instead of in every step. Both may be given. "
            "vessels: train `skeleton_recall` with skeletons made once per volume, and measure clDice and Betti "
            "errors. "
            "lesions: train `component_dice_ce`, with the components of the label found once per volume.",
        ),
        click.option(
            "--loss",
            help="A name from `monai-extra-losses list`, or module.Class of your own, importable from the current "
            "folder  [default: dice_ce].",
        ),
    ):
        command = option(command)
    return command


def _runs(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option for one run or several, of a `CommandOfRuns`."""
    return click.option(
        "--run", "--bundle_root", "runs", type=_folder, required=True, multiple=True, metavar="DIR...", help=text
    )


class _TrainingCommand(click.Command):
    """A command whose help ends with the options of a training."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from monai_extra_losses.cli.option_rows import rows_of_training

        super().format_epilog(ctx, formatter)
        above = {word.lstrip("-") for param in self.params if param.required for word in param.opts}
        with formatter.section("Options of configs/train.yaml with their defaults"):
            formatter.write_dl(rows_of_training(leave_out=above), col_max=32)


@commands.command(cls=_TrainingCommand, context_settings=_with_overrides)
@click.option(
    "--data", "--dataset_dir", type=_folder, required=True, help="Folder with dataset.json, or imagesTr/ and labelsTr/."
)
@click.option(
    "--run", "--bundle_root", type=_folder, required=True, help="Folder of the run; models/ and eval/ are made in it."
)
@_training_options
@click.option(
    "--fold", metavar="FOLD", help="The fold that validates, or all: each in turn, in RUN/fold_0, RUN/fold_1, ..."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="With --fold all: so many at a time  [default: one per GPU, or one]."
)
@click.pass_context
def train(context: click.Context, /, data: Path, run: Path, fold: str | None, jobs: int | None, **chosen: Any) -> None:
    """Train a 3D network: a small U-Net, or by --network another.

    Every value of configs/train.yaml can be given as --KEY VALUE, and the options of the loss as --loss::KEY VALUE.
    Often used ones:

    \b
    --network dynunet             unet, small and quick; dynunet, of nnU-Net, for long trainings and thick
                                  slices; or segresnet
    --fold 0, --num_folds 5       the fold that validates, or all; and the folds to deal
    --patch_size "[96, 96, 32]"   voxels per axis
    --pixdim "[1, 1, 2.5]"        spacing in mm to resample to
    --hu_window "[-175, 250]"     CT: intensities to clip to
    --flip_axes "[0, 1]"          axes to mirror patches along, or False; by itself left-right where
                                  no class is the left or right one of two
    --batch_size 4                patches per step
    --learning_rate 0.002         of the first step
    --early_stop_patience 5       stop after validations without a better Dice
    --cache disk                  prepared volumes in memory, on disk or none
    --amp bf16                    half precision: fp16, bf16 or False
    --pretrained FILE             weights to start from
    --limit 20                    the first cases only
    --resume True                 go on with the run in the folder, or begin it: for every start of a job
    --overwrite True              replace it
    --device cpu, --num_workers 4 where to compute, and loader processes

    `monai-extra-losses config-dir` prints the folder of the files that explain them all. --tracking mlflow records the
    run with MLflow (pip install mlflow), in eval/mlruns.db.

    \b
    monai-extra-losses train --data Task04_Hippocampus --run runs/ft --loss focal_tversky
    monai-extra-losses train --data DIR --run runs/t --loss tversky --loss::alpha 0.2 --loss::beta 0.8 --batch_size 2
    monai-extra-losses train --data DIR --run runs/t --loss tversky --resume True
    monai-extra-losses train --data DIR --run runs/surface --loss surface --with boundary_maps
    monai-extra-losses train --data DIR --run runs/vessels --with vessels
    monai-extra-losses train --data DIR --run runs/folds --fold all
    monai-extra-losses train --data DIR --run runs/deep --network dynunet --deep_supervision True
    monai-extra-losses train --data DIR --run runs/own --loss my_module.MyLoss --loss::scale 2
    torchrun --standalone --nproc_per_node=2 -m -- monai_extra_losses train --data DIR --run runs/two_gpus
    """
    configs, options = _training(context, data, **chosen)
    if fold == "all" and _processes() > 1:
        raise StartUpRefused("Expected one process for --fold all, got several by torchrun; give a fold.")
    if fold == "all":
        from monai_extra_losses.cli.folds import train_every_fold

        train_every_fold(context.find_root().meta[__name__], run.absolute(), configs, options, jobs)
        return
    if jobs is not None:
        raise StartUpRefused("Expected --jobs with --fold all alone; one training runs at a time.")
    if fold is not None:
        options["fold"] = literal(fold)
    several = ("multi_gpu_train",) if _processes() > 1 else ()
    run_configs((*configs, *several), **{"bundle_root": run.absolute()} | options)


@commands.command(context_settings=_with_overrides)
@click.option(
    "--data", "--dataset_dir", type=_folder, required=True, help="Folder with dataset.json, or imagesTr/ and labelsTr/."
)
@click.option(
    "--losses",
    required=True,
    metavar="LOSS,...",
    help="Names from `monai-extra-losses list`, or module.Class of your own; with options, focal_tversky::gamma=2, and "
    "overlays of `train --with`, surface+boundary_maps. Differences are to the first.",
)
@click.option("--out", type=_folder, required=True, help="Folder of the comparison.")
@click.option("--folds", default="0", show_default=True, metavar="FOLD,...", help="Folds that validate, one by one.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Trainings with other weights and patches; with one nothing can be said.",
)
@click.option("--epochs", type=int, help="Epochs of each training  [default: as in train.yaml].")
@click.option(
    "--grid",
    multiple=True,
    metavar="OPTION=VALUE,...",
    help="Values tried for every loss, such as learning_rate=0.001,0.002; the best in validation is taken. Several "
    "times: all combinations.",
)
@click.option("--test", type=_folder, help="Data set to measure on  [default: the cases that validate].")
@click.option(
    "--config_file", multiple=True, type=_folder, help="Your own training config in place of train.yaml, or several."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Trials at a time  [default: one per GPU, or one].")
@click.option("--engine", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@click.option("--slurm", type=_folder, metavar="FILE", help="YAML with the options below, and others of sbatch.")
@click.option("--partition", help="Of SLURM.")
@click.option("--account", help="Of SLURM.")
@click.option("--time", help='Of SLURM, per trial: minutes, or "12:00:00".')
@click.option("--gpus_per_trial", type=click.IntRange(min=0), help="Of SLURM.")
@click.option("--dry-run", is_flag=True, help="List the trials and about how long they take; train nothing.")
@click.pass_context
def compare(context: click.Context, /, **given: Any) -> None:
    """Compare losses on your data: which is better, by how much, and is that more than noise.

    Trains every loss in every fold with every seed, each in a process and a run folder of its own below OUT/trials. The
    cases of the folds, and within a seed the first weights and the patches, are the same for all losses. Then writes
    OUT/report.html (one file), OUT/report.md and OUT/results.csv: the noise of the seeds, differences to the first loss
    with intervals over cases and seeds, tests, ranks, curves, and what it cost.

    Every value of configs/train.yaml can be given as --KEY VALUE. Stopped or killed, the same line goes on: what is
    finished is kept, what was begun is gone on with, what failed is tried again.

    \b
    monai-extra-losses compare --data DIR --losses dice_ce,focal_tversky,dice_top_k --seeds 3 --out compared
    monai-extra-losses compare --data DIR --losses dice_ce,surface+boundary_maps --folds 0,1 --jobs 2 --out compared
    monai-extra-losses compare --data DIR --losses dice_ce,tversky --grid learning_rate=0.001,0.002,0.004 --out compared
    monai-extra-losses compare --data DIR --losses dice_ce,tversky --engine slurm --partition gpu --time 4:00:00 \\
      --gpus_per_trial 1 --out compared
    """
    from monai_extra_losses.cli.comparing import compare_losses

    words = shlex.join(["monai-extra-losses", *context.find_root().meta[__name__]])
    compare_losses(words, overrides_of(context.args), **given)


@commands.command(context_settings=_with_overrides)
@click.option(
    "--data", "--dataset_dir", type=_folder, required=True, help="Folder with dataset.json, or imagesTr/ and labelsTr/."
)
@click.option(
    "--run", "--bundle_root", type=_folder, help="Folder that the run would have; it is looked at, never written."
)
@_training_options
@click.pass_context
def doctor(context: click.Context, /, data: Path, run: Path | None, **chosen: Any) -> None:
    """Take a few steps of a training and say what is right and wrong with it, before it costs hours.

    Takes the options of `train`. Says of each point whether it is ok, a warning or a problem: labels and channels, the
    activation of the loss, its value where that is known, gradients, NaN, classes that the patches miss, time of a step
    and of the whole, memory. Exit code 0 without a problem, 1 with any. Writes nothing but temporary files, and what
    the check of the data remembers.

    \b
    monai-extra-losses doctor --data Task04_Hippocampus --loss focal_tversky
    monai-extra-losses doctor --data DIR --loss tversky --loss::weight "[1, 2, 5]" --batch_size 2
    """
    from monai_extra_losses.doctor.findings import examine

    configs, options = _training(context, data, **chosen)
    levels = []
    with without_pointless_warnings():
        for finding in examine(config_files(configs), run, **options):
            levels.append(finding.level)
            click.echo(
                textwrap.fill(
                    finding.text,
                    _WIDTH,
                    initial_indent=f"{finding.level:9}",
                    subsequent_indent=" " * 9,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
    problems, warned = levels.count("problem"), levels.count("warning")
    click.echo(f"{problems or 'No'} problem{'s' * (problems > 1)}, {warned or 'no'} warning{'s' * (warned > 1)}.")
    if problems:
        raise SystemExit(1)


@commands.command(cls=CommandOfRuns, context_settings=_with_overrides)
@_runs("Folder of a trained run; several, or a pattern of them: their tables are pooled.")
@click.option("--data", "--dataset_dir", type=_folder, help="Data set folder  [default: the one trained on].")
@click.option(
    "--split",
    type=click.Choice(["validation", "training", "all"]),
    default="validation",
    show_default=True,
    help="Cases as the run dealt them, or every labelled case of the data set.",
)
@click.pass_context
def evaluate(context: click.Context, runs: tuple[Path, ...], data: Path | None, split: str) -> None:
    """Measure a run: Dice, Hausdorff distance and surface Dice in millimetres, false-positive volume, pictures.

    Several runs, such as the folds of a cross-validation, are measured one by one, each in its own eval/ and not again
    where that is done. Then cases.csv, with a column `run`, and summary.csv of all their cases are written to eval/
    beside the runs, or to --output_dir. With --data or another --split the tables of each are below --output_dir, and
    a case that several runs measured counts once for each.

    Every value of configs/evaluate.yaml can be given as --KEY VALUE. Often used ones:

    \b
    --output_dir DIR              folder of tables and pictures
    --overwrite True              replace those of an earlier evaluation
    --overlays False              draw no pictures
    --metrics vessels             clDice and errors of the Betti numbers, too
    --metrics lesions             lesions found, false positives, and by volume (--lesion_overlap, --lesion_bins)
    --surface_tolerance_mm 2      of the surface Dice
    --hysteresis "[0.25, 0.7]"    leave out what is likely nowhere
    --model_file FILE             other weights
    --device cpu, --num_workers 4 where to compute, and loader processes

    `monai-extra-losses config-dir` prints the folder of the files that explain them all.

    \b
    monai-extra-losses evaluate --run runs/ft
    monai-extra-losses evaluate --run runs/ft --data OTHER_DIR --split all --output_dir results/other
    monai-extra-losses evaluate --run runs/a/fold_*
    """
    folders = [folder.absolute() for folder in run_folders("--run", runs)]
    options: dict[str, Any] = {"split": split} | ({} if data is None else {"dataset_dir": data.absolute()})
    options |= overrides_of(context.args)
    if len(folders) > 1:
        _evaluate_several(folders, options)
        return
    several = ("multi_gpu_evaluate",) if _processes() > 1 else ()
    run_configs(("train", "losses", "evaluate", *several), bundle_root=folders[0], **options)


def _evaluate_several(runs: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Evaluate runs one by one, and pool their tables."""
    if (count := _processes()) > 1:
        raise StartUpRefused(f"Expected one process for several runs, got {count} by torchrun; start without it.")
    if options.get("model_file") is not None:
        raise StartUpRefused(
            f"Expected no model_file with several runs, each of which has its own, got {options['model_file']}; leave "
            "it out."
        )
    check_overrides(("train", "losses", "evaluate"), options)
    from monai_extra_losses.bundle.pooled_evaluation import PooledEvaluation

    output = options.get("output_dir")
    pooled = PooledEvaluation(
        runs,
        split=options["split"],
        other_data="dataset_dir" in options,
        output_dir=None if output is None else Path(output).absolute(),
        overwrite=yes_or_no("overwrite", options.get("overwrite", False)),
        same_metrics=options.get("metrics") is None,
    )
    for run in pooled.runs:
        click.echo(f"\n== {run.name} ==")
        own = {"bundle_root": run.folder.root, "output_dir": run.results.root, "skip_finished": True}
        run_configs(("train", "losses", "evaluate"), **{**options, **own})
    click.echo(f"\n== All {len(pooled.runs)} runs ==")
    pooled.write()


@commands.command(cls=CommandOfRuns, context_settings=_with_overrides)
@_runs("Folder of a trained run; several, or a pattern of them: their probabilities are averaged.")
@click.option("--input", "source", type=_folder, required=True, help="A volume, a DICOM series, or a folder of them.")
@click.option(
    "--output", "--output_dir", type=_folder, required=True, help="Folder for the label maps NAME_seg.nii.gz."
)
@click.pass_context
def infer(context: click.Context, runs: tuple[Path, ...], source: Path, output: Path) -> None:
    """Segment volumes: NIfTI, NRRD, MHA and MHD files, and DICOM series (a folder each).

    Several runs (folds, seeds, losses, networks) segment together: their probabilities are averaged, then decided.
    --uncertainty True writes NAME_uncertainty.nii.gz beside, how far they disagree: the mutual information of
    prediction and model in nats, which is the entropy of the mean probabilities less the mean of the entropies; of
    regions, the largest.

    A case that is finished is skipped; what is there of another model, other options or another image is refused, and
    made anew with --overwrite True. What cannot be segmented is named at the end. Files in a folder per case are found
    by patterns, one per channel: --input "DIR/{case}/{case}-t1c.nii.gz,DIR/{case}/{case}-t2w.nii.gz". Every value of
    configs/inference.yaml can be given as --KEY VALUE. Often used ones:

    \b
    --test_time_flips True        average over mirror images
    --hysteresis "[0.25, 0.7]"    leave out what is likely nowhere
    --probabilities True          write them too
    --uncertainty True            of several runs, write how far they disagree
    --output_type dicom_seg       of DICOM series also write NAME_seg.dcm, a DICOM SEG object; measurements:
                                  NAME_measurements.json, volume, components, diameter and mean of each
                                  class; dicom_seg,measurements: both
    --series TEXT                 which series of DICOM folders with several
    --channel_files False         NAME_0000, NAME_0001, ... are cases and no channels
    --restore_labels False        write the label ids of the training
    --model_file FILE             other weights
    --overwrite True              make anew what is there of another model or image
    --amp False                   half precision: fp16, bf16 or False
    --device cpu, --num_workers 4 where to compute, and loader processes

    `monai-extra-losses config-dir` prints the folder of the files that explain them all.

    \b
    monai-extra-losses infer --run runs/ft --input scans/ --output segmentations/
    monai-extra-losses infer --run runs/ft --input DIR --output OUT --test_time_flips True --probabilities True
    monai-extra-losses infer --run runs/a/fold_* --input DIR --output OUT --uncertainty True
    monai-extra-losses infer --run runs/ft --input SERIES --output OUT --output_type dicom_seg,measurements
    """
    first, *others = (folder.absolute() for folder in run_folders("--run", runs))
    overrides = overrides_of(context.args)
    if "ensemble" in overrides:
        raise StartUpRefused("Expected the runs of an ensemble behind --run, got --ensemble; name all by --run.")
    options: dict[str, Any] = {
        "workflow_type": "infer",
        "bundle_root": first,
        "input": source if CASE in str(source) else source.absolute(),
        "output_dir": output.absolute(),
    }
    if others:
        options["ensemble"] = others
    run_configs(("inference",), **options | overrides)


@commands.command()
@click.argument("data", type=_folder, metavar="[DIR]", required=False)
@click.option(
    "--images", type=_folder, help="Folder of images: files, or a folder per DICOM series; or patterns  [required]."
)
@click.option("--labels", type=_folder, help="Folder of labels, paired with images by name; or a pattern  [required].")
@click.option(
    "--organ-masks",
    type=_folder,
    metavar="DIR",
    help="In place of both: folders as of TotalSegmentator, CASE/ct.nii.gz and CASE/segmentations/ORGAN.nii.gz.",
)
@click.option("--out", type=_folder, required=True, help="Folder for the data set.")
@click.option("--test-images", type=_folder, help="Folder of images without labels, for imagesTs/.")
@click.option("--series", metavar="TEXT", help="The DICOM series of the images: its description, part of it, or UID.")
@click.option("--resample-labels", is_flag=True, help="Bring labels onto their image's grid (nearest neighbour).")
@click.option("--remap", metavar="OLD:NEW,...", help='Give label ids others, such as "4:3,7:0".')
@click.option("--ignore-label", type=int, metavar="ID", help="The id, after --remap, of voxels without annotation.")
@click.option("--names", metavar="ID:NAME,...", help='Names of the labels, such as "1:liver,2:tumour".')
@click.option(
    "--annotated",
    metavar="ID,...",
    help='The ids, after --remap, that these cases annotate where they do not all, such as "1,3".',
)
@click.option(
    "--regions", is_flag=True, help="Keep structures that overlap: each is a region, each combination a label."
)
@click.option("--modality", metavar="NAME", help="Name of the images' one channel, such as CT.")
@click.option("--channel-names", metavar="NAME,...", help='Names of several channels, such as "T1,T2".')
@click.option("--folds", type=click.IntRange(min=0), default=5, show_default=True, help="Folds to deal; 0: none.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Deals other folds.")
@click.option(
    "--group-by",
    metavar="REGEX",
    help="Finds the patient in the name of a case (first group, else all it matches); a patient stays in one fold.",
)
@click.option("--overwrite", is_flag=True, help="Make anew what an earlier call wrote; other files stay.")
@click.option("--workers", type=click.IntRange(min=1), help="Cases at a time  [default: one per core, at most 8].")
def prepare(
    data: Path | None,
    images: Path | None,
    labels: Path | None,
    organ_masks: Path | None,
    out: Path,
    test_images: Path | None,
    series: str | None,
    resample_labels: bool,
    remap: str | None,
    ignore_label: int | None,
    names: str | None,
    annotated: str | None,
    regions: bool,
    modality: str | None,
    channel_names: str | None,
    folds: int,
    seed: int,
    group_by: str | None,
    overwrite: bool,
    workers: int | None,
) -> None:
    """Make a data set out of NIfTI, NRRD, MetaImage (MHA, MHD) files and DICOM series.

    Writes imagesTr/, labelsTr/, imagesTs/ as .nii.gz, dataset.json with folds, and manifest.json with the source of
    every file. Values, voxel types and grids of the images stay; all is checked before anything is written. The same
    call again goes on where it was stopped.

    DIR is a folder with dataset.json, such as one of nnU-Net v2 in any of these formats: it says which files are cases,
    what the labels, regions and channels are called, and which value is ignored. Label values become 0 to n.

    Names pair images and labels: a file's name without its format, or that of the folder of a DICOM series, which may
    have sub-folders. NAME_seg, NAME.seg, NAME-seg, NAME_label, NAME-label, NAME_mask and NAME_gt are labels of NAME;
    NAME_0000, NAME_0001, ... are its channels. Files in other places are named by patterns, in which {case} stands for
    the name of the case, and commas separate the channels; {label} in that of the labels stands for the name of a
    structure with a file of its own.

    DICOM SEG and RTSTRUCT objects among the labels, anywhere below the folder, are paired with the series that they
    refer to, whatever the files are called. --names picks their segments by name; the others are left out.

    3D Slicer's .seg.nrrd names its segments: where numbers and names differ between files, ids follow the names. Layers
    and files of structures that do not overlap become one label; --regions keeps what overlaps.

    A label must lie on its image's grid, within 5 % of a voxel; --resample-labels changes nothing but the order of
    the voxels where only the axes are turned. Label ids must be 0 to n; the refusal proposes a --remap. Voxels of the
    --ignore-label are left out of losses and measures; it may be any id, 255 or -1 say.

    Where nobody has looked for some structures, a voxel of the background may be one of them. --annotated names the ids
    that all cases of this call annotate; --names may have more then, for cases of other data sets to annotate. Of
    --organ-masks a case annotates the structures of which it has a file: an empty mask is an absent structure, and no
    mask says nothing. --images and --labels may name other files of these folders by patterns.

    \b
    monai-extra-losses prepare --images scans --labels contours --out data/liver --names 1:liver,2:tumour
    monai-extra-losses prepare --images dicom --labels nrrd --out DIR --series portal --group-by "^[^_]+"
    monai-extra-losses prepare --images "IN/{case}/imaging.nii.gz" --labels "IN/{case}/segmentation.nii.gz" --out DIR
    monai-extra-losses prepare --images "IN/{case}/ct.nii.gz" --labels "IN/{case}/masks/{label}.nii.gz" --out DIR
    monai-extra-losses prepare --organ-masks Totalsegmentator_dataset --out DIR --modality CT
    monai-extra-losses prepare --images IN --labels SEG --out DIR --names 1:liver,2:kidney,3:spleen --annotated 1,3
    monai-extra-losses prepare --images dicom --labels rtstruct --out DIR --names 1:liver,2:tumour
    monai-extra-losses prepare nnUNet_raw/Dataset004_Liver --out DIR
    """
    from monai_extra_losses.data.label_ids import parse_ids, parse_names, parse_remap
    from monai_extra_losses.data.layouts import organ_mask_patterns
    from monai_extra_losses.data.prepare import PrepareOptions, prepare_dataset

    if modality is not None and channel_names is not None:
        raise StartUpRefused("Expected --modality for one channel or --channel-names for several, got both.")
    channels = channel_names.split(",") if channel_names else [modality] if modality else []
    declares = {
        "--images": images,
        "--labels": labels,
        "--organ-masks": organ_masks,
        "--test-images": test_images,
        "--remap": remap,
        "--ignore-label": ignore_label,
        "--names": names,
        "--annotated": annotated,
    }
    if data is not None and (given := [name for name, value in declares.items() if value is not None]):
        raise StartUpRefused(
            f"Expected {data} alone, whose dataset.json says what is there, got {', '.join(given)} too; leave one out."
        )
    try:
        if data is not None:
            images = labels = data
        if organ_masks is not None:
            images, labels = organ_mask_patterns(organ_masks, images, labels)
        if images is None or labels is None:
            raise click.UsageError(
                f"Missing option '--{'images' if images is None else 'labels'}', --organ-masks or DIR."
            )
        options = PrepareOptions(
            images=images,
            labels=labels,
            test_images=test_images,
            series=series,
            resample_labels=resample_labels,
            remap=parse_remap(remap) if remap else {},
            ignore_label=ignore_label,
            names=parse_names(names) if names else {},
            channels=tuple(name.strip() for name in channels),
            num_folds=folds,
            seed=seed,
            group_by=group_by,
            annotated=parse_ids(annotated) if annotated is not None else None,
            organ_masks=organ_masks is not None,
            as_declared=data is not None,
            regions=regions,
        )
        prepared = prepare_dataset(options, out, overwrite=overwrite, num_workers=workers)
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None
    _echo_made(prepared.summary(), out, trains_alone=prepared.trains_alone)


@commands.command()
@click.argument("sources", nargs=-1, type=_folder, metavar="DIR DIR ...")
@click.option("--out", type=_folder, required=True, help="Folder for the data set.")
@click.option("--rename", metavar="OLD:NEW,...", help='Give classes other names, such as "liver_tumor:tumor".')
@click.option(
    "--channel-names", metavar="NAME,...", help="Names of the channels, where the data sets call them others."
)
@click.option("--folds", type=click.IntRange(min=0), default=5, show_default=True, help="Folds to deal; 0: none.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Deals other folds.")
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@click.option("--overwrite", is_flag=True, help="Make anew what an earlier call wrote; other files stay.")
@click.option(
    "--workers",
    "--num-workers",
    type=click.IntRange(min=1),
    help="Cases at a time  [default: one per core, at most 8].",
)
def pool(
    sources: tuple[Path, ...],
    out: Path,
    rename: str | None,
    channel_names: str | None,
    folds: int,
    seed: int,
    copy: bool,
    overwrite: bool,
    workers: int | None,
) -> None:
    """Make one data set out of several, each of which annotates some of the classes.

    Takes folders with dataset.json, as training does. Labels of one name, whatever its case and spaces, are one class,
    so the name has to mean the same in each. Ids are 1, 2, ... as the names first appear in the folders, in the order
    given. dataset.json says of each case which classes are annotated in it; of the others nothing is known there.

    Everything is checked before anything is written: every file, labels that are not declared, channels, names. Labels
    are written with their new ids. Images are linked, by paths relative to the new folder: move it together with the
    sources, or --copy. Names of cases that are in several folders get that of the folder in front (of folders of one
    name, that of the parent too). The cases of each folder are dealt to the folds in proportion. manifest.json has the
    source, the licence and the checksum of every file. The same call again goes on where it was stopped.

    \b
    monai-extra-losses pool Task03_Liver Task09_Spleen --out data/organs
    monai-extra-losses pool liver kits spleen --out DIR --rename "Leber:liver,spl:spleen" --folds 4
    """
    from monai_extra_losses.data.pool import PoolOptions, pool_datasets
    from monai_extra_losses.data.pool_classes import parse_rename

    try:
        options = PoolOptions(
            sources=sources,
            rename=parse_rename(rename) if rename else {},
            channels=tuple(name.strip() for name in channel_names.split(",")) if channel_names else (),
            num_folds=folds,
            seed=seed,
            copy=copy,
        )
        pooled = pool_datasets(options, out, overwrite=overwrite, num_workers=workers)
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None
    _echo_made(pooled.summary(), out)


@commands.command("export-nnunet")
@click.argument("data", type=_folder, metavar="DIR")
@click.option("--out", type=_folder, help="The folder nnUNet_raw  [default: the environment variable].")
@click.option("--id", "number", type=int, help="Of the data set, 1 to 999  [default: the next free one from 11 on].")
@click.option("--name", help="Of the data set  [default: its own].")
@click.option("--channel-names", metavar="NAME,...", help="Other names of the channels; nnU-Net knows CT by its name.")
@click.option("--link", is_flag=True, help="Link files that stay as they are (hard links) instead of copying them.")
@click.option("--workers", type=click.IntRange(min=1), help="Cases at a time  [default: one per core, at most 8].")
def export_nnunet(
    data: Path,
    out: Path | None,
    number: int | None,
    name: str | None,
    channel_names: str | None,
    link: bool,
    workers: int | None,
) -> None:
    """Write a data set as a raw folder of nnU-Net v2, DatasetXXX_NAME in the folder nnUNet_raw.

    DIR is any folder that `check` reads; of other formats and layouts `prepare` makes one. Every file is checked as by
    `check`, and the folder appears when it is whole. Images become a .nii.gz file per channel; files that nnU-Net reads
    as they are, are copied. Label values become 0 to n, the ignore label the highest, regions what nnU-Net joins, with
    `regions_class_order`. dataset.json also keeps what nnU-Net passes over: `original_labels`, `label_names`, and
    `annotated`, {CASE: [value, ...]}. Folds are in splits_final.json. `check`, `prepare` and `train` read the folder.

    
    monai-extra-losses export-nnunet Task04_Hippocampus --out nnUNet_raw --id 4
    monai-extra-losses export-nnunet data/liver --out nnUNet_raw --name Liver --link
    """
    from monai_extra_losses.data.nnunet_place import RAW
    from monai_extra_losses.data.nnunet_raw import export_nnunet as export

    raw = out or (Path(place) if (place := os.environ.get(RAW)) else None)
    if raw is None:
        raise click.UsageError(f"Missing option '--out', or the environment variable {RAW}.")
    channels = tuple(text.strip() for text in channel_names.split(",")) if channel_names else ()
    try:
        written = export(data, raw, number=number, name=name, channels=channels, link=link, num_workers=workers)
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None
    click.echo(written.summary())
    click.echo("\nNext:\n  " + "\n  ".join(written.commands()))
    click.echo("`monai-extra-losses nnunet-trainers` names the trainers of these losses, for nnUNetv2_train -tr.")


@commands.command()
@click.argument("data", type=_folder, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def check(data: Path, as_json: bool) -> None:
    """List all problems of a data set, or else what it holds and which losses to try.

    Reads every file. Tells sizes, intensities, volumes and connected components of the classes, and spacing, patch and
    losses to start from. What was read is remembered while a file does not change. Exit code 0 without a problem, 1
    with any.

    Where cases annotate some classes only ("annotated" in dataset.json), it also tells in how many cases each class is
    annotated, and counts it over these.

    The JSON document has: format (1), folder, problems; and without problems: name, labels, regions, ignore_label,
    percentiles, statistics (axes R, A, S), advice, cases and unlabelled (each with the axes of its file).

    \b
    monai-extra-losses check Task04_Hippocampus
    monai-extra-losses check Task04_Hippocampus --json > hippocampus.json
    """
    from monai_extra_losses.data.check_report import JSON_FORMAT, data_report

    try:
        report = data_report(data)
    except DatasetError as error:
        if not as_json:
            raise StartUpRefused(str(error)) from None
        click.echo(json.dumps({"format": JSON_FORMAT, "folder": str(data), "problems": error.problems}, indent=1))
        raise SystemExit(1) from None
    click.echo(json.dumps(report.document(), indent=1) if as_json else report.text())


@commands.command()
@click.option("--out", type=_folder, required=True, help="New folder.")
@click.option(
    "--kind",
    type=click.Choice(["organ", "vessels"]),
    default="organ",
    show_default=True,
    help="An organ with small lesions, or an artery and a vein that branch, with gaps in contrast.",
)
@click.option("--cases", type=click.IntRange(min=1), default=_DEMO_CASES, show_default=True, help="Labelled cases.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def phantom(out: Path, kind: str, cases: int, seed: int) -> None:
    """Write a data set of phantom volumes: an organ, and small lesions in it, or vessels."""
    _write_phantom(out, cases, seed, kind=kind)


@commands.command("config-dir")
@click.option("--copy", type=_folder, help="Copy the bundle (configs/ and LICENSE) into this folder instead.")
def config_dir(copy: Path | None) -> None:
    """Print the folder of the configs, or copy them to work on.

    \b
    monai-extra-losses config-dir --copy my_bundle
    cd my_bundle && python -m monai.bundle run --config_file configs/train.yaml --dataset_dir DIR
    """
    source = monai_extra_losses.config_dir()
    if copy is None:
        click.echo(source)
        return
    if (copy / "configs").exists():
        raise StartUpRefused(f"{copy / 'configs'} exists and is left alone; choose another folder.")
    try:
        shutil.copytree(source, copy / "configs", ignore=shutil.ignore_patterns("__pycache__"))
        if not (copy / "LICENSE").exists():
            (copy / "LICENSE").write_text(_licence(), encoding="utf-8")
    except OSError as error:
        from monai_extra_losses.data.storage import storage_reason

        shutil.rmtree(copy / "configs", ignore_errors=True)  # half a copy
        reason = storage_reason(error) or error.strerror or str(error)
        raise StartUpRefused(f"Expected a folder that can be written, got {copy} ({reason}).") from None
    click.echo(f"Copied to {copy}; work there with: python -m monai.bundle run --config_file configs/train.yaml ...")


@commands.command("list")
def list_losses() -> None:
    """Print the losses that `--loss` takes; `monai-extra-losses show NAME` tells more of one."""
    from monai_extra_losses.cli.loss_pages import loss_table

    table = loss_table()
    width = max(map(len, table)) + 2
    classes = {name: entry["_target_"].rpartition(".")[2] for name, entry in table.items()}
    class_width = max(map(len, classes.values())) + 2
    for name, entry in table.items():
        click.echo(f"{name:{width}}{classes[name]:{class_width}}{entry['_desc_']}")


@commands.command("nnunet-trainers")
@click.option("--list", "listed", is_flag=True, help="Print the names of the trainers instead.")
def nnunet_trainers(listed: bool) -> None:
    """Print the line that shows nnU-Net the trainers with these losses.

    \b
    eval "$(monai-extra-losses nnunet-trainers)"
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainer_focal_tversky
    """
    from monai_extra_losses.integrations.nnunet import TRAINER_VARIABLE, trainer_folder, trainer_names

    if listed:
        click.echo("\n".join(trainer_names()))
        return
    if importlib.util.find_spec("nnunetv2") is None:
        click.echo("nnU-Net is not installed here; it comes with the extra [nnunet] of this package.", err=True)
    click.echo("# nnUNetv2_train DATA CONFIGURATION FOLD -tr nnUNetTrainer_LOSS, LOSS of `monai-extra-losses list`")
    folders = [folder for folder in os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep) if folder]
    folders += [str(trainer_folder())] * (str(trainer_folder()) not in folders)
    click.echo(f"export {TRAINER_VARIABLE}={shlex.quote(os.pathsep.join(folders))}")


@commands.command()
@click.argument("loss", metavar="LOSS")
def show(loss: str) -> None:
    """Print the formula of a loss, its options with their defaults, how to configure it, and where it comes from.

    LOSS is a name from `monai-extra-losses list`, or that of a class.

    \b
    monai-extra-losses show focal_tversky
    monai-extra-losses show HuberLoss
    """
    from monai_extra_losses.cli.loss_pages import loss_page

    click.echo(loss_page(loss))


@commands.command()
def version() -> None:
    """Print the versions of this package and of what it stands on."""
    click.echo(f"monai-extra-losses {monai_extra_losses.__version__}")
    for package in ("monai", "torch", "pytorch-ignite", "numpy", "nibabel"):
        click.echo(f"{package} {version_of(package)}")


@commands.command(context_settings=_with_overrides)
@click.option("--data", type=_folder, help="Data set folder  [default: a phantom is written].")
@click.option("--loss", default="dice_ce", show_default=True, help="A name from `monai-extra-losses list`.")
@click.option("--out", type=_folder, help="New folder for everything  [default: runs/demo_LOSS].")
@click.option("--epochs", type=int, help=f"Epochs to train  [default: {_DEMO_EPOCHS} on the phantom].")
@click.pass_context
def demo(context: click.Context, data: Path | None, loss: str, out: Path | None, epochs: int | None) -> None:
    """Train, evaluate, segment one volume, draw the pictures, and say where everything is.

    The same call again goes on where it was stopped; a finished demo shows its results.

    \b
    monai-extra-losses demo
    monai-extra-losses demo --epochs 20
    monai-extra-losses demo --loss focal_tversky --data Task04_Hippocampus
    """
    started = time.perf_counter()
    overrides = ({} if epochs is None else {"epochs": epochs}) | overrides_of(context.args)
    check_overrides(("train", "losses"), {"loss": loss} | overrides)  # before anything is written
    call = {"data": None if data is None else str(data.absolute()), "loss": loss, "options": overrides}
    out, finished = _demo_folder(out, Path("runs") / f"demo_{loss}", call)
    results = out / "eval"
    if finished:
        click.echo(f"This demo is finished; for a new one name another --out, or delete {shlex.quote(str(out))}.\n")
        click.echo((results / "summary.txt").read_text(encoding="utf-8").partition("\n")[0])
    else:
        _write_demo(out, data, {"loss": loss} | overrides)
        _record_demo(out, call, finished=True)
    click.echo(
        ("\n" if finished else f"\nDone in {time.perf_counter() - started:.0f} s. ") + f"Everything is in {out}:\n"
        f"  learning curves      {results / 'curves.png'}\n"
        f"  target, prediction   {results / 'overlays'}\n"
        f"  tables               {results / 'summary.csv'}, {results / 'cases.csv'}, {results / 'training.csv'}\n"
        f"  best model           {out / 'models' / 'model.pt'}\n"
        f"  segmentation         {out / 'segmentations'}"
    )


def _write_demo(out: Path, data: Path | None, overrides: dict[str, Any]) -> None:
    """What of a demo is not there yet."""
    if data is None:
        data = out / "phantom"
        if not data.exists():
            draft = out / ".phantom"
            shutil.rmtree(draft, ignore_errors=True)  # half of one
            _write_phantom(draft, _DEMO_CASES, seed=0, place=data)
        overrides.setdefault("epochs", _DEMO_EPOCHS)
        patience = _DEMO_PATIENCE
    else:
        patience = ""
    data = data.absolute()
    click.echo(f"\n== Training ==\n{patience}", nl=False)
    if (out / "models" / "run.json").exists():
        overrides.setdefault("resume", True)
    options = {"dataset_dir": data, "bundle_root": out}
    run_configs(("train", "losses"), **options | overrides)
    click.echo("\n== Evaluation on the validation cases ==")
    if (out / "eval" / "summary.csv").exists():
        click.echo(f"Done before: {out / 'eval' / 'summary.csv'}")
    else:
        run_configs(("train", "losses", "evaluate"), bundle_root=out, overwrite=True)
    click.echo("\n== Segmenting one volume ==")
    volume, seen = _volume_to_segment(data, out)
    click.echo(f"{volume} ({seen})")
    run_configs(("inference",), workflow_type="infer", bundle_root=out, input=volume)


def _demo_folder(out: Path | None, default: Path, call: Mapping[str, Any]) -> tuple[Path, bool]:
    """The folder of a demo: a new one, or that of the same call before; and whether that is finished.

    Args:
        out: as asked for; None: `default`, or `default-2`, `default-3`, ... where others are in use.
        default: folder.
        call: what tells one demo from another, as `.demo.json` in the folder has it.
    """
    number = 1
    while True:
        folder = (out or (default if number == 1 else default.with_name(f"{default.name}-{number}"))).absolute()
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            _record_demo(folder, call, finished=False)
            return folder, False
        try:
            earlier = json.loads((folder / ".demo.json").read_text(encoding="utf-8"))
            if earlier["call"] == json.loads(json.dumps(call, default=str)):
                whole = all(
                    (folder / file).exists() for file in ("models/model.pt", "eval/summary.csv", "segmentations")
                )
                return folder, bool(earlier["finished"]) and whole
        except (OSError, ValueError, LookupError, TypeError):
            pass
        if out is not None:
            raise StartUpRefused(
                f"Expected a new or empty folder as --out, or that of the same demo, got {folder}, which is in use; "
                "name another."
            )
        number += 1


def _record_demo(folder: Path, call: Mapping[str, Any], finished: bool) -> None:
    from monai_extra_losses.data.storage import whole_file, writing

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / ".demo.json") as draft:
        draft.write_text(
            json.dumps({"call": call, "finished": finished}, indent=1, default=str) + "\n", encoding="utf-8"
        )


def _training(
    context: click.Context, data: Path, loss: str | None, overlays: tuple[str, ...], epochs: int | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The configs of a training and their options."""
    options: dict[str, Any] = {"dataset_dir": data.absolute()}
    if loss is not None:
        options["loss"] = loss
    if epochs is not None:
        options["epochs"] = epochs
    chosen = tuple(name for name in OVERLAYS if name in overlays)
    return ("train", "losses", *chosen), options | overrides_of(context.args)


def _echo_made(summary: str, out: Path, *, trains_alone: bool = True) -> None:
    """Print what a data set holds, and the commands that go on with it."""
    click.echo(summary)
    folder = shlex.quote(str(out))
    if trains_alone:
        click.echo(
            f"\nNext:\n  monai-extra-losses check {folder}\n"
            f"  monai-extra-losses train --data {folder} --run {shlex.quote(f'runs/{out.resolve().name}')}"
        )


def _write_phantom(folder: Path, cases: int, seed: int, place: Path | None = None, kind: str = "organ") -> None:
    """Write a phantom, and move it to its place when it is whole."""
    from monai_extra_losses.data.phantom import write_phantom

    try:
        write_phantom(folder, kind=kind, num_cases=cases, seed=seed)
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None
    if place is not None:
        folder.replace(place)
    click.echo(f"Phantom data set: {place or folder}")


def _licence() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout that is on the path alone
        for file in metadata.files("monai-extra-losses") or []:
            if file.name == "LICENSE":
                return file.read_text(encoding="utf-8")
    beside = monai_extra_losses.config_dir().parent / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    raise StartUpRefused("Expected the licence among the installed files, got none; install the package again.")


def _volume_to_segment(data: Path, out: Path) -> tuple[Path, str]:
    """A volume that the training did not use, and how much the model knows of it."""
    from monai_extra_losses.bundle.run_folder import RunFolder
    from monai_extra_losses.bundle.run_record import RunRecord
    from monai_extra_losses.data.datalist import read_case_list

    case_list = read_case_list(data)
    for case in case_list.unlabelled:
        if len(case.image) == 1 and case.image[0].exists():
            return case.image[0], "never seen"
    first = RunRecord.read(RunFolder(out).record).validation[0]
    case = next(case for case in case_list.cases if case.name == first)
    return case.image[0], "a validation case"
