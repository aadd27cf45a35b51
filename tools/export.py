"""Exports a pruned model, uses each format in a fresh process, and prints sizes and differences.

    python tools/export.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp --output=runs/exported
    python tools/export.py --model=my.keras --inputs=x.npy --formats=tflite,tflite_int8 --output=runs/lite

Of a finished run of tools/prune.py it takes the pruned model and, to compare on, all test images, unless there are
--inputs; of a .keras file the model as it is and, without --inputs, made-up ones.

The exit code is 0 when all formats are written, 1 when that failed, 2 when a setting was wrong, and 130 after Ctrl-C;
but after 0, nothing is written.
"""

from absl import flags

from aimp_tf.files import check_writable
from experiments import command_line, datasets
from experiments.experiment import Experiment

_CONFIG = command_line.define_config(Experiment, "That of the run in --workdir.")
_WORKDIR = command_line.define_path("workdir", "Folder of a finished run of tools/prune.py.")
_DATA_DIR = command_line.define_data_dir()
_MODEL = command_line.define_path("model", "A .keras file to export, in place of --config and --workdir.")
_INPUTS = command_line.define_path("inputs", "npy file, or npz file with an array for each input, to compare on.")
_FORMATS = flags.DEFINE_list(
    "formats",
    ["saved_model", "keras"],
    "Any of saved_model, sparse_saved_model, keras, tflite, tflite_fp16, tflite_dynamic, tflite_int8, tflite_sparse, "
    "onnx, coded, weights; see help(aimp_tf.export).",
)
_COMPACT = flags.DEFINE_bool("compact", False, "Remove what pruning left dead first, by aimp_tf.compact.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "What sparse_saved_model is to be fast at.", lower_bound=1)
_OUTPUT = command_line.define_path("output", "Folder to write to. Required.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there already.")


def main() -> None:
    command_line.quieten()
    with command_line.refusing():
        command_line.check_either([["model"], ["config", "workdir"]])
        check_writable(_OUTPUT.value, "the folder of --output")
        if _CONFIG.value is not None:
            _CONFIG.value.validate()
        with command_line.silent_stderr():  # Only now, for TensorFlow takes seconds to import.
            from aimp_tf.exporting import choose_formats, export
            from aimp_tf.exporting.compaction import compact_and_report
            from aimp_tf.exporting.verification import largest_difference
            from experiments import exports

        choose_formats(_FORMATS.value)
        inputs = None if _INPUTS.value is None else exports.load_inputs(_INPUTS.value)
        if _MODEL.value is not None:
            model = exports.load_keras_file(_MODEL.value)
        else:
            model = exports.load_run(_CONFIG.value, _WORKDIR.value)
            if inputs is None:
                inputs = datasets.load(_CONFIG.value.dataset, _DATA_DIR.value).test_images
    exported, compaction = compact_and_report(model) if _COMPACT.value else (model, None)
    options = {"overwrite": _OVERWRITE.value, "batch_size": _BATCH_SIZE.value}
    artefacts = export(exported, _OUTPUT.value, _FORMATS.value, inputs=inputs, **options)
    print(exports.table(model, artefacts))
    if compaction is not None:
        changed = largest_difference(model, exported, inputs)
        print(f"\nIt was compacted, which changed its outputs by {changed:.1e}.\n{compaction.summary()}")


if __name__ == "__main__":
    command_line.run(main, required=["output"])
