"""What the commands of `python -m eval` share: the encoder, embedding, common arguments, output files.

A command is a module of eval/commands/ with `NAME`, `HELP`, `add_arguments(parser)` and `run(arguments, world)`.
"""

from eval.commands.common.arguments import (
    add_batch_argument,
    add_benchmark_arguments,
    add_checkpoint_argument,
    add_encoder_arguments,
    add_json_argument,
    add_precision_argument,
    positive,
)
from eval.commands.common.features import ImageSet, bin_sets, cached, embed, named_bins, open_encoder, photo_reader
from eval.commands.common.output import Figures, Results, plot_folder, prepare_outputs, save_plots

__all__ = [
    "Figures",
    "ImageSet",
    "Results",
    "add_batch_argument",
    "add_benchmark_arguments",
    "add_checkpoint_argument",
    "add_encoder_arguments",
    "add_json_argument",
    "add_precision_argument",
    "bin_sets",
    "cached",
    "embed",
    "named_bins",
    "open_encoder",
    "photo_reader",
    "plot_folder",
    "positive",
    "prepare_outputs",
    "save_plots",
]
