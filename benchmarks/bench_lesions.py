"""What the losses of lesions train to, on a data set of lesions.

    python benchmarks/bench_lesions.py --data DIR --out DIR [--epochs 80] [--csv FILE]

Trains the bundle with each loss and several seeds, which draw the weights and cut the patches; the cases that validate
are the same for all. Then measures the epoch that validated best on these cases, by the best class of each voxel and by
hysteresis: what is above 0.25 and hangs together with something above 0.7. Means over the cases. A lesion is found when
a tenth of it is predicted, and a predicted component is a false positive unless a tenth of it lies in lesions. Two
trainings at a time, a thread each.

A difference is one where the values of all seeds of one loss are on one side of those of the other, and no more than
that: a few seeds, a few cases, which also chose the epoch.
"""

from pathlib import Path

from bundle_trainings import Training, Trainings, compare_trainings, parser_of, run_one

LOSSES = ("dice_ce", "dice_focal", "focal_tversky", "component_dice_ce", "blob_dice_ce", "dice_top_k")
READ_CELLS = ("component_dice_ce", "blob_dice_ce")


def trainings(folder: Path, fold: int, patch: list[int], batch: int) -> Trainings:
    """Of the data set in a folder."""
    return Trainings(
        trainings={
            name: Training(("lesions",) if name in READ_CELLS else (), {"loss": f"@losses::{name}"}) for name in LOSSES
        },
        of_all={
            "dataset_dir": str(folder),
            "fold": fold,
            "fold_seed": 0,
            "patch_size": patch,
            "batch_size": batch,
            "val_interval": 10,
            "metrics": ["lesions"],
            "device": "cpu",
        },
        metrics=(
            *("dice", "lesion_f1", "lesion_sensitivity", "lesion_precision", "false_positive_lesions"),
            *("lesion_sensitivity_0_to_0.01_ml", "lesion_sensitivity_0.01_to_0.1_ml"),
        ),
        evaluations={
            "": {"lesion_overlap": 0.1},
            "_hysteresis": {"lesion_overlap": 0.1, "hysteresis": [0.25, 0.7]},
        },
    )


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.set_defaults(epochs=80)
    parser.add_argument("--data", type=Path, required=True, help="the data set")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 32])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=LOSSES, default=LOSSES)
    args = parser.parse_args()
    if args.out is None:
        parser.error("expected --out.")
    args.out = args.out.resolve()
    of = trainings(args.data.resolve(), args.fold, args.patch, args.batch)
    if args.one:
        run_one(of, args)
    else:
        compare_trainings(of, args.only, args)


if __name__ == "__main__":
    main()
