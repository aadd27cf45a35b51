import csv
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from aimp_tf import PruningConfig
from aimp_tf.reports import plots
from experiments import call_in_fresh_process, environment_of_tools, executors, run_study, study_report
from experiments import cell as cell_process
from experiments.experiment import Experiment, from_fields, to_fields
from experiments.study import Arm, Cell, CellResult, Study, differences, planned_epochs

TOOL = pathlib.Path(__file__).parent.parent / "tools" / "study.py"


def make_study(arms=None, **changes):
    pruning = PruningConfig(target_sparsity=0.9, epochs=30, round_epochs=6)
    fields = {
        "experiment": Experiment("digits", "lenet_300_100", pruning),
        "arms": {"dense": Arm(pruning={"method": "dense"}), "aimp": Arm()} if arms is None else arms,
        "sparsities": (0.5, 0.9),
        "seeds": (0, 1),
        **changes,
    }
    return Study(**fields)


def thousand(experiment):
    """In place of the number of prunable weights: 0.5 takes four rounds at a rate of 0.2 (1000, 800, 640, 512, 500)."""
    return 1000


@pytest.fixture
def thousand_weights(monkeypatch):
    monkeypatch.setattr(run_study, "_weight_counts", lambda experiments: thousand)


def result_of(job, accuracy=0.5):
    fields = json.loads(json.dumps(dataclasses.asdict(job.experiment)))
    return CellResult(
        **dataclasses.asdict(job.cell),
        accuracy=accuracy,
        measured_sparsity=job.cell.sparsity,
        epochs=3,
        seconds=1.0,
        experiment=fields,
    )


def write_result(job, **changes):
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "result.json").write_text(json.dumps({**dataclasses.asdict(result_of(job)), **changes}))


class FakeExecutor:
    """Says of each cell what `outcomes` says of its arm: an accuracy, which it writes, or what went wrong."""

    def __init__(self, jobs, **outcomes):
        self.jobs, self.outcomes = {job.folder: job for job in jobs}, outcomes

    def run(self, orders, data_dir):
        for folder, order in orders.items():
            assert folder.is_dir() and from_fields(json.loads(order)["experiment"]) == self.jobs[folder].experiment
            outcome = self.outcomes[self.jobs[folder].cell.arm]
            if isinstance(outcome, float):
                write_result(self.jobs[folder], accuracy=outcome)
            yield folder, None if isinstance(outcome, float) else outcome


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"experiment": None}, TypeError, "must be an Experiment; got None"),
        ({"arms": [Arm()]}, TypeError, r"must map names to Arm\(...\); got \["),
        ({"arms": {}}, ValueError, "A study needs arms"),
        ({"arms": {"a": {}}}, TypeError, "must map names to Arm"),
        ({"arms": {"a/b": Arm()}}, ValueError, "letters, digits and underscores; got 'a/b'"),
        ({"arms": {"a": Arm(pruning={"rat": 0.1})}}, TypeError, "Arm 'a': .*no field 'rat'. Did you mean 'rate'"),
        ({"arms": {"a": Arm(experiment={"kera": "keras"})}}, TypeError, "Arm 'a': .*Did you mean 'keras'"),
        ({"arms": {"a": Arm(experiment={"keras": "torch"})}}, ValueError, "Arm 'a': keras must be one of"),
        ({"arms": {"a": Arm(pruning={"rate": 2})}}, ValueError, "Arm 'a': rate must lie in"),
        ({"arms": {"a": Arm(pruning={"seed": 2})}}, ValueError, "seed is set by the study's seeds"),
        ({"arms": {"a": Arm(pruning={"target_sparsity": 0.5})}}, ValueError, "set by the study's sparsities"),
        ({"arms": {"a": Arm(pruning={"method": "tfmot"})}}, ValueError, "Arm 'a': .*tools/benchmark.py peers"),
        ({"arms": {"a": Arm(pruning={"criterion": max})}}, TypeError, "Arm 'a': .*plain data"),
        ({"arms": {"a": Arm(epochs_of="b"), "bb": Arm()}}, ValueError, "Arm 'a': .*got 'b'. Did you mean 'bb'"),
        ({"arms": {"a": Arm(epochs_of="a")}}, ValueError, "circle: a -> a"),
        ({"arms": {"a": Arm(epochs_of="b"), "b": Arm(epochs_of="a")}}, ValueError, "circle: a -> b -> a"),
        (
            {"arms": {"a": Arm(pruning={"epochs": 2}, epochs_of="b"), "b": Arm()}},
            ValueError,
            "epochs_of sets the epochs",
        ),
        ({"arms": {"a": Arm(epochs_of="b", epochs_factor=0), "b": Arm()}}, ValueError, "epochs_factor must be above 0"),
        ({"arms": {"a": Arm(epochs_factor=2)}}, ValueError, "Arm 'a': .* of another arm, which epochs_of names"),
        ({"sparsities": ()}, ValueError, "needs sparsities"),
        ({"sparsities": (0.5, 90)}, ValueError, "target_sparsity must lie in"),
        ({"sparsities": (0.5, 0.5)}, ValueError, "0.5 comes 2 times"),
        ({"seeds": ()}, ValueError, "needs seeds"),
        ({"seeds": (0, 1, 0)}, ValueError, "seeds must differ from one another; 0 comes 2 times"),
        ({"seeds": (0.5,)}, TypeError, "seeds must be whole numbers; got 0.5"),
    ],
)
def test_bad_studies_are_refused(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run_study.plan_study(make_study(**changes), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_cells_are_the_grid_seed_by_seed():
    cells = make_study().cells()
    assert [(cell.arm, cell.sparsity, cell.seed) for cell in cells] == [
        ("dense", 0.0, 0),
        ("aimp", 0.5, 0),
        ("aimp", 0.9, 0),
        ("dense", 0.0, 1),
        ("aimp", 0.5, 1),
        ("aimp", 0.9, 1),
    ]
    assert cells[1].folder == "aimp/sparsity_0.5/seed_0"


def test_a_cell_has_the_settings_of_its_arm():
    study = make_study({"slow": Arm(pruning={"rate": 0.1, "rewind": "weights"}, experiment={"learning_rate": 0.3})})
    experiment = study.resolve(Cell("slow", 0.5, 7), thousand)
    assert (experiment.seed, experiment.learning_rate, experiment.pruning.target_sparsity) == (7, 0.3, 0.5)
    assert (experiment.pruning.seed, experiment.pruning.rate, experiment.pruning.rewind) == (7, 0.1, "weights")
    assert study.experiment == make_study().experiment


def test_epochs_of_gives_equal_epochs_in_all():
    study = make_study(
        {
            "aimp": Arm(),
            "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
            "dense_long": Arm(pruning={"method": "dense"}, epochs_of="gradual"),
            "one_shot": Arm(pruning={"rate": 0.999, "round_epochs": 15}, epochs_of="aimp"),
        },
        sparsities=(0.5,),
        seeds=(0,),
    )
    study.validate()
    assert len(study.cells()) == 4
    resolved = {cell.arm: study.resolve(cell, thousand) for cell in study.cells()}
    assert {planned_epochs(experiment, thousand) for experiment in resolved.values()} == {4 * 6 + 30}
    assert [resolved[arm].pruning.epochs for arm in resolved] == [30, 54, 54, 39]
    assert resolved["one_shot"].pruning.round_epochs == 15


def done_study(tmp_path, seconds, **arms):
    """A study of AIMP and these arms, all cells done, which by seed took so many seconds for each of their epochs."""
    study = make_study({"aimp": Arm(), **arms}, sparsities=(0.5,), seeds=(0, 1, 2))
    for job in run_study.plan_study(study, tmp_path)[0]:
        own = job.epochs - (job.experiment.teacher_epochs or 0)
        write_result(job, epochs=job.epochs, seconds=own * seconds[job.cell.arm][job.cell.seed])
    return study


def test_equal_time_gives_the_epochs_that_take_it(thousand_weights, tmp_path):
    study = done_study(
        tmp_path,
        {
            "aimp": (1, 2, 4),
            "slow": (2, 4, 4),
            "imp": (1, 2, 4),
            "gradual": (2 / 3, 4 / 3, 100),
            "long": (1, 1, 1),
            "dense": (0.5, 1, 2),
            "taught": (1, 2, 4),
        },
        slow=Arm(pruning={"fade_epochs": 1}),
        imp=Arm(pruning={"round_epochs": 30}),
        gradual=Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
        long=Arm(pruning={"epochs": 300}),
        dense=Arm(pruning={"method": "dense"}),
        taught=Arm(experiment={"teacher_epochs": 1}),
    )
    timed, folder, known = run_study.at_equal_time(study, tmp_path, "aimp")
    jobs, done = run_study.plan_study(timed, folder)
    assert folder == tmp_path / "time_of_aimp" and not done and not folder.exists()
    assert [(cell.arm, cell.seed, result.epochs) for cell, result in known.items()] == [
        ("aimp", seed, 54) for seed in (0, 1, 2)
    ]
    epochs = {job.cell.arm: job.epochs for job in jobs}
    # Medians of a half, 1.5 and 2.
    assert epochs == {"aimp": 54, "slow": 27, "imp": 54, "gradual": 81, "dense": 108, "taught": 54}
    pruning = {job.cell.arm: job.experiment.pruning for job in jobs}
    assert (pruning["slow"].round_epochs, pruning["slow"].epochs) == (3, 27 - 4 * 3)
    assert (pruning["imp"].round_epochs, pruning["imp"].epochs) == (10, 54 - 4 * 10)  # Of 30 and 30, 150 in all.
    timed, *_ = run_study.at_equal_time(study, tmp_path, "aimp", ["gradual", "long"])
    assert list(timed.arms) == ["aimp", "gradual"]


def test_equal_time_wants_an_arm_whose_cells_are_done(thousand_weights, tmp_path):
    study = done_study(tmp_path, {"aimp": (1, 1, 1), "soft": (1, 1, 1)}, soft=Arm(pruning={"method": "soft"}))
    other = dataclasses.replace(study, arms={**study.arms, "gradual": Arm(epochs_of="aimp")})
    with pytest.raises(ValueError, match="gradual has those of aimp. Name aimp."):
        run_study.at_equal_time(other, tmp_path, "gradual")
    with pytest.raises(ValueError, match="Unknown arm 'amp'; the arms are aimp, soft. Did you mean 'aimp'?"):
        run_study.at_equal_time(study, tmp_path, "amp")
    (tmp_path / Cell("soft", 0.5, 1).folder / "result.json").unlink()
    with pytest.raises(ValueError, match="1 cells are not, such as soft, sparsity 0.5, seed 1. Run them first"):
        run_study.at_equal_time(study, tmp_path, "aimp")
    assert list(run_study.at_equal_time(study, tmp_path, "aimp", [])[0].arms) == ["aimp"]


def test_too_few_epochs_for_the_rounds_are_refused(thousand_weights, tmp_path):
    study = make_study({"aimp": Arm(), "short": Arm(pruning={"round_epochs": 1, "epochs": 1})})
    study.arms["imp"] = Arm(pruning={"round_epochs": 30}, epochs_of="short")
    with pytest.raises(
        ValueError, match="'imp': epochs_of='short' gives it 5 epochs at sparsity 0.5, which leaves -115"
    ):
        run_study.plan_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_weights_are_counted_without_tensorflow_in_this_process():
    """Whoever runs a study for hours need not hold TensorFlow in memory, nor wait for it to hear of a mistake."""
    program = """
import sys
from aimp_tf import PruningConfig
from experiments import executors, run_study, study_report
from experiments.experiment import Experiment
experiments = [
    Experiment("digits", "lenet_300_100", PruningConfig(0.5, epochs=1)),
    Experiment("fashion_mnist", "resnet_8", PruningConfig(0.5, epochs=1, exclude=("logits/*",))),
    Experiment("fashion_mnist", "resnet_8", PruningConfig(0.5, epochs=1, exclude=("logits/*",), granularity="2:4")),
]
count = run_study._weight_counts(experiments)
print(*map(count, experiments), {"tensorflow", "keras", "ray", "matplotlib"} & sys.modules.keys())
"""
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of_tools())
    assert done.stdout.strip() == f"{64 * 300 + 300 * 100 + 1000} {77_072 - 640} {77_072 - 640 - 3 * 3 * 16} set()", (
        done.stderr
    )


def test_a_model_that_cannot_be_built_is_refused(monkeypatch, tmp_path):
    def fail(function, **arguments):
        return call_in_fresh_process("json.loads", s="no JSON")

    monkeypatch.setattr(run_study, "call_in_fresh_process", fail)
    with pytest.raises(ValueError, match="A model of the study cannot be built: json.*Error: Expecting value"):
        run_study.plan_study(make_study(), tmp_path / "study")


def test_a_stored_experiment_is_told_from_another():
    experiment = make_study().experiment
    experiment.pruning.exclude = ("logits/*",)
    stored = json.loads(json.dumps(dataclasses.asdict(experiment)))
    assert from_fields(stored) == experiment and differences(stored, experiment) == []
    del stored["steps_per_execution"], stored["pruning"]["rewind"]
    assert differences(stored, experiment) == []
    stored["batch_size"] = 16
    stored["pruning"]["rate"] = 0.5
    assert differences(stored, experiment) == ["pruning.rate: 0.5 there, 0.2 here", "batch_size: 16 there, 64 here"]
    assert "no field 'rats'" in differences({**stored, "pruning": {"rats": 1}}, experiment)[0]


@pytest.mark.parametrize("method", ["iterative", "gradual"])
def test_a_cell_that_version_1_did_is_told_from_one_of_today(method):
    experiment = make_study().experiment
    experiment.pruning = experiment.pruning.replace(method=method, round_epochs=None)
    stored = json.loads(json.dumps(to_fields(experiment)))
    assert differences(stored, experiment) == []
    del stored["pruning"]["version"], stored["pruning"]["min_layer_share"]
    experiment.pruning.round_epochs = 6 if method == "iterative" else None  # A fifth of 30; as `merged` has it.
    assert differences(stored, experiment) == ["pruning.min_layer_share: 0.0 there, 0.05 here"]
    experiment.pruning.min_layer_share = 0
    assert differences(stored, experiment) == []


def test_done_cells_are_found_and_those_of_other_settings_refused(thousand_weights, tmp_path):
    study = make_study()
    jobs, done = run_study.plan_study(study, tmp_path)
    assert len(jobs) == 6 and done == {}
    assert {job.cell.arm: job.epochs for job in jobs if job.cell.sparsity != 0.9} == {"dense": 30, "aimp": 54}
    write_result(jobs[1], accuracy=0.75)
    (jobs[2].folder / "run").mkdir(parents=True)
    left, done = run_study.plan_study(study, tmp_path)
    assert left == jobs[:1] + jobs[2:]
    assert {cell: result.accuracy for cell, result in done.items()} == {jobs[1].cell: 0.75}
    study.arms["aimp"].pruning["rate"] = 0.3
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"aimp, sparsity 0.5, seed 0 .*pruning.rate: 0.2 there, 0.3 here\. Name another"
    ):
        run_study.plan_study(study, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written: .*file is not a folder"):
        run_study.plan_study(make_study(), tmp_path / "file")


def test_arms_are_chosen_by_name(thousand_weights, tmp_path):
    jobs, _ = run_study.plan_study(make_study(), tmp_path)
    write_result(jobs[0])
    write_result(jobs[1])
    left, done = run_study.plan_study(make_study(), tmp_path, ["dense"])
    assert left == [jobs[3]] and list(done) == [jobs[0].cell, jobs[1].cell]
    with pytest.raises(ValueError, match="Unknown arm 'amp'; the arms are dense, aimp. Did you mean 'aimp'"):
        run_study.plan_study(make_study(), tmp_path, ["dense", "amp"])


def test_what_fails_is_reported_and_the_rest_carried_on(thousand_weights, capsys, tmp_path):
    study = make_study({"good": Arm(), "bad": Arm(), "lost": Arm()}, sparsities=(0.5,), seeds=(0,))
    jobs, _ = run_study.plan_study(study, tmp_path)
    executor = FakeExecutor(jobs, bad="it broke", lost=None, good=0.25)
    results, failures = run_study.run_jobs(jobs, executor, None)
    assert {cell.arm: result.accuracy for cell, result in results.items()} == {"good": 0.25}
    assert {cell.arm: failure for cell, failure in failures.items()} == {
        "bad": "it broke",
        "lost": f"its result is not to be seen in {jobs[2].folder}; the workdir must lie on storage that all "
        "machines share",
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 of 3: good, sparsity 0.5, seed 0: accuracy 25.00%, 3 epochs in 1 s; about ")
    assert lines[1].startswith("2 of 3: bad, sparsity 0.5, seed 0: FAILED: it broke; about ")
    assert "left" not in lines[2]


@pytest.fixture
def shell_cells(monkeypatch, tmp_path):
    """A function that makes cells which run a line of shell each, by name, and gives their folders and lines."""

    def start(folder, line, data_dir, threads):
        with open(folder / "log.txt", "wb") as log:
            command = ["sh", "-c", line]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder)

    monkeypatch.setattr(cell_process, "start", start)

    def make(**lines):
        for name in lines:
            (tmp_path / name).mkdir()
        return {tmp_path / name: line for name, line in lines.items()}

    return make


def test_crashes_are_told_with_the_last_line_of_the_log(shell_cells):
    cells = shell_cells(
        crash="echo first; echo; echo 'ValueError: so it is' >&2; echo; exit 3",
        killed="kill -9 $$",
        good="touch result.json",
        noisy="touch result.json; exit 134",
        native=f"echo first; exec {sys.executable} -X faulthandler -c 'import faulthandler; faulthandler._sigsegv()'",
    )
    outcomes = dict(executors.LocalExecutor(workers=2).run(cells, None))
    folders = list(cells)
    assert outcomes == {
        folders[0]: f"ended by exit code 3; the last line of {folders[0]}/log.txt: ValueError: so it is",
        folders[1]: f"ended by SIGKILL; the last line of {folders[1]}/log.txt: ",
        folders[2]: None,
        folders[3]: None,
        folders[4]: f"ended by SIGSEGV; the last line of {folders[4]}/log.txt: first",
    }


def test_only_so_many_cells_run_at_a_time(shell_cells, tmp_path):
    line = f"echo + >> {tmp_path}/log; sleep 0.5; echo - >> {tmp_path}/log; touch result.json"
    cells = shell_cells(**{f"cell_{number}": line for number in range(5)})
    assert all(failure is None for _, failure in executors.LocalExecutor(workers=2).run(cells, None))
    running, most = 0, 0
    for sign in (tmp_path / "log").read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert most == 2
    with pytest.raises(ValueError, match="workers must be at least 1; got 0"):
        executors.LocalExecutor(workers=0)


def test_what_runs_is_ended_with_the_executor(shell_cells):
    cells = shell_cells(good="touch result.json", endless="echo $$ > pid; exec sleep 1000")
    folders = list(cells)
    running = executors.LocalExecutor(workers=2).run(cells, None)
    assert next(running) == (folders[0], None)
    while not (pid := (folders[1] / "pid").read_text() if (folders[1] / "pid").exists() else ""):
        time.sleep(0.01)
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_cell_runs_once_at_a_time_and_ends_with_who_started_it(tmp_path):
    experiment = Experiment("digits", "lenet_300_100", PruningConfig(0.5, epochs=100_000))
    order = cell_process.order(Cell("a", 0.5, 0), experiment)
    process = cell_process.start(tmp_path, order, None, threads=1)
    with pytest.raises(RuntimeError, match="another study runs it at this moment"):
        cell_process.start(tmp_path, "another order", None, threads=1)
    assert (tmp_path / "cell.json").read_text() == order + "\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert cell_process.failure(tmp_path, process).startswith("ended by exit code 1")


def test_a_cell_that_crashes_in_native_code_leaves_its_stack(tmp_path):
    experiment = Experiment("digits", "lenet_300_100", PruningConfig(0.5, epochs=100_000))
    process = cell_process.start(tmp_path, cell_process.order(Cell("a", 0.5, 0), experiment), None, threads=1)
    status = pathlib.Path(f"/proc/{process.pid}/status")
    for _ in range(1000):  # Until Python has begun.
        if int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> signal.SIGSEGV - 1 & 1:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGSEGV)
    assert cell_process.failure(tmp_path, process).startswith("ended by SIGSEGV; the last line of ")
    assert "most recent call first" in (tmp_path / "log.txt").read_text()


def results_of(study, accuracies, epochs=None):
    """Results with made-up accuracies: (arm, sparsity) -> one a seed."""
    return [
        CellResult(arm, sparsity, seed, accuracy, sparsity, (epochs or {}).get(arm, 54), 2.5, {})
        for (arm, sparsity), values in accuracies.items()
        for seed, accuracy in zip(study.seeds, values, strict=False)
    ]


def test_the_report_has_means_and_standard_deviations(tmp_path):
    study = make_study(
        {"dense": Arm(pruning={"method": "dense"}), "aimp": Arm(), "imp": Arm(), "none": Arm()}, seeds=(3, 5, 8)
    )
    accuracies = {
        ("dense", 0.0): (0.7, 0.8),
        ("aimp", 0.5): (0.5, 0.6, 0.7),  # Deviations -10, 0 and 10 points: their squares over n - 1 = 2 are 100.
        ("aimp", 0.9): (0.9, 0.9, 0.9),
        ("imp", 0.9): (0.12345,),
    }
    results = results_of(study, accuracies, epochs={"dense": 30})
    results[3] = dataclasses.replace(results[3], epochs=55)
    text = study_report.write_report(study, results, tmp_path)
    table = (tmp_path / "results.md").read_text()
    assert table in text and str(tmp_path) in text
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"] == [
        ["arm", "sparsity 0.5", "epochs", "sparsity 0.9", "epochs"],
        ["---"] * 5,
        ["dense", "75.00 ± 7.07 (2)", "30", "75.00 ± 7.07 (2)", "30"],
        ["aimp", "60.00 ± 10.00 (3)", "54.33", "90.00 ± 0.00 (3)", "54"],
        ["imp", "", "", "12.35 (1)", "54"],
        ["none", "", "", "", ""],
    ]
    assert "the same in every column: dense." in table
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert rows[2] == {
        "arm": "aimp",
        "sparsity": "0.5",
        "seed": "3",
        "accuracy": "0.5",
        "measured_sparsity": "0.5",
        "epochs": "54",
        "seconds": "2.5",
    }
    for name in ("sparsity", "epochs"):
        assert (tmp_path / f"accuracy_by_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("held_out", "images"), [(None, "test"), (137, "validation")])
def test_the_report_says_which_images_judged(held_out, images):
    experiment = dataclasses.replace(make_study().experiment, train_examples=1000, validation_examples=held_out)
    study = make_study(experiment=experiment)
    results = results_of(study, {("aimp", 0.5): (0.5,)})
    assert f"digits: {images} accuracy in percent" in study_report.markdown(study, results)
    axes = study_report.plot_by_sparsity(study, results).axes[0]
    assert axes.get_ylabel() == f"{images} accuracy in percent"


def drawn(axes):
    """Arm -> its means in a panel: x, mean, and half the length of the error bar."""
    points = {}
    for container in axes.containers:
        line, _, (bars,) = container
        for x, y, segment in zip(*line.get_data(), bars.get_segments(), strict=True):
            points.setdefault(container.get_label(), []).append((x, y, (segment[1][1] - segment[0][1]) / 2))
    return points


def test_the_plots_show_what_the_table_says():
    study = make_study()
    accuracies = {("dense", 0.0): (0.88, 0.9), ("aimp", 0.5): (0.85, 0.87), ("aimp", 0.9): (0.84,)}
    results = results_of(study, accuracies, epochs={"dense": 30})
    (axes,) = study_report.plot_by_sparsity(study, results).axes
    points = drawn(axes)
    assert list(points) == ["dense", "aimp"]
    assert [point[1:] for point in points["dense"]] == [pytest.approx((89, 2**0.5))] * 2
    assert [point[1:] for point in points["aimp"]] == [pytest.approx((86, 2**0.5)), pytest.approx((84, 0))]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "0.9"]

    figure = study_report.plot_by_epochs(study, results)
    assert [axes.get_title() for axes in figure.axes] == ["sparsity 0.5", "sparsity 0.9"]
    points = [drawn(axes) for axes in figure.axes]
    assert points[0] == {"dense": [pytest.approx((30, 89, 2**0.5))], "aimp": [pytest.approx((54, 86, 2**0.5))]}
    assert points[1]["aimp"] == [pytest.approx((54, 84, 0))]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "aimp"]
    assert not any(axes.texts for axes in figure.axes)
    left, right = study_report.plot_by_epochs(study, [result for result in results if result.sparsity == 0.5]).axes
    assert list(drawn(left)) == ["aimp"] and drawn(right) == {}


def test_an_outlier_is_marked_where_the_axis_is_cut():
    study = make_study({"a": Arm(), "b": Arm(), "c": Arm()}, sparsities=(0.5,), seeds=(0,))
    results = results_of(study, {("a", 0.5): (0.89,), ("b", 0.5): (0.9,), ("c", 0.5): (0.1,)})
    for figure in (study_report.plot_by_sparsity(study, results), study_report.plot_by_epochs(study, results)):
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.texts] == ["↓ 10.0"]
        assert axes.get_ylim()[0] == pytest.approx(89 - 5 * 1)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[study\]"'):
        executors.RayExecutor()
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[study\]"'):
        plots.check_matplotlib("study")


def test_a_ray_address_where_nothing_answers_is_refused_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"No Ray cluster answers at {address}"):
            executors.RayExecutor(address=address)
    with pytest.raises(ConnectionError, match="'nonsense' is not the address of a Ray cluster"):
        executors.RayExecutor(address="nonsense")


def test_a_machine_that_does_not_see_the_workdir_says_so(tmp_path):
    assert "does not see" in executors._run_on_node(tmp_path / "elsewhere", "", None, threads=1)


CONFIG = """
from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study


def get_config():
    pruning = PruningConfig(target_sparsity=0.9, rate=0.6, epochs=3, round_epochs=1)
    return Study(
        Experiment("digits", "lenet_300_100", pruning, learning_rate=0.05, steps_per_execution=23, validation_freq=3),
        arms={
            "aimp": Arm(),
            "dense_long": Arm(pruning={"method": "dense"}, epochs_of="aimp"),
            "diverges": Arm(experiment={"learning_rate": 1e30}),
        },
        sparsities=(0.8,),
        seeds=(1,),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "study.py"
    path.write_text(CONFIG)
    return path


FAILURE = r"(?m)^diverges, sparsity 0.8, seed 1: failed: .*/seed_1/log.txt: RuntimeError: .*NaN"


def tool(config, workdir, *arguments):
    command = [sys.executable, TOOL, f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def local_study(config, tmp_path_factory):
    """A real study on digits in two processes, too short to be good, with an arm that fails, and what the tool said."""
    workdir = tmp_path_factory.mktemp("study") / "local"
    return workdir, tool(config, workdir, "--workers=2")


def rows_of(workdir):
    with open(workdir / "results.csv", newline="") as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_study_runs_to_its_report(local_study):
    workdir, done = local_study
    assert done.returncode == 1, done.stderr
    rows = rows_of(workdir)
    assert list(rows) == ["aimp", "dense_long"]
    for arm, row in rows.items():
        assert float(row["accuracy"]) > 0.8
        assert float(row["measured_sparsity"]) == pytest.approx(0.8 if arm == "aimp" else 0.0, abs=1e-4)
        assert int(row["epochs"]) == 2 * 1 + 3  # A rate of 0.6 reaches 0.8 in two rounds.
    assert (workdir / "results.md").read_text() in done.stdout
    assert "0 cells are done, 3 are to run" in done.stdout
    assert len(re.findall(r"^\d of 3: ", done.stdout, re.MULTILINE)) == 3
    assert re.search(FAILURE, done.stderr)
    result = json.loads((workdir / "aimp/sparsity_0.8/seed_1/result.json").read_text())
    metrics = [json.loads(line) for line in open(workdir / "aimp/sparsity_0.8/seed_1/run/metrics.jsonl")]
    looked_at = [line for line in metrics if line["split"] == "validation"]
    # Once, after the third epoch of the last training.
    assert looked_at == metrics[-1:] and result["accuracy"] == looked_at[0]["accuracy"]
    assert result["experiment"]["pruning"]["seed"] == 1


@pytest.mark.slow
def test_done_cells_are_skipped(local_study, config):
    workdir, _ = local_study
    cells = {path: path.stat().st_mtime_ns for path in workdir.rglob("seed_*/**/*")}
    (workdir / "results.csv").unlink()
    done = tool(config, workdir, "--arms=aimp,dense_long")
    assert done.returncode == 0, done.stderr
    assert "2 cells are done, 0 are to run" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("seed_*/**/*")} == cells
    assert list(rows_of(workdir)) == ["aimp", "dense_long"]


@pytest.mark.slow
def test_a_study_goes_on_at_equal_time(local_study, config):
    workdir, _ = local_study
    done = tool(config, workdir, "--arms=dense_long", "--equal_time=aimp")
    assert done.returncode == 0, done.stderr
    (factor,) = re.findall(r"^dense_long trains (\S+) times as many epochs as aimp\.$", done.stdout, re.MULTILINE)
    assert "1 cells are done, 1 are to run" in done.stdout  # That of aimp is what it was.
    rows, before = rows_of(workdir / "time_of_aimp"), rows_of(workdir)
    assert rows["aimp"] == before["aimp"] and not (workdir / "time_of_aimp/aimp").exists()
    assert int(rows["dense_long"]["epochs"]) == pytest.approx(float(factor) * 5, abs=0.6)
    assert list(rows) == list(before) == ["aimp", "dense_long"]


@pytest.mark.slow
def test_ray_gives_the_same_results(local_study, config, tmp_path):
    """On a Ray of its own on this machine."""
    workdir, _ = local_study
    done = tool(config, tmp_path / "ray", "--executor=ray", "--workers=2", "--arms=aimp,diverges")
    assert done.returncode == 1, done.stderr
    assert re.search(FAILURE, done.stderr)
    here, there = rows_of(workdir)["aimp"], rows_of(tmp_path / "ray")["aimp"]
    assert {**here, "seconds": 0} == {**there, "seconds": 0}


@pytest.mark.slow
def test_an_interruption_ends_all_cells_and_says_how_to_go_on(config, tmp_path):
    workdir = tmp_path / "a study"
    command = [sys.executable, TOOL, f"--config={config}", f"--workdir={workdir}", "--workers=1"]
    command += ["--config.experiment.pruning.epochs=100000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = workdir / "aimp/sparsity_0.8/seed_1/log.txt"
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == f"Interrupted. Resume with: {shlex.join(map(str, command))}\n"
    # Its lock is free once its process has ended, which one that had hardly begun finds out a moment later.
    deadline = time.monotonic() + 60
    with open(log) as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            pytest.fail("The cell goes on.")


@pytest.mark.slow
def test_a_cell_goes_on_with_its_run(local_study, tmp_path):
    workdir, _ = local_study
    shutil.copytree(workdir / "aimp/sparsity_0.8/seed_1", tmp_path / "cell")
    before = cell_process.read_result(tmp_path / "cell")
    (tmp_path / "cell" / "result.json").unlink()
    # To the microsecond as long as before: nothing was trained again.
    assert cell_process.run_cell(tmp_path / "cell", None) == before == cell_process.read_result(tmp_path / "cell")
