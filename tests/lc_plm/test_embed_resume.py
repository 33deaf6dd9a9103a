"""``seqgraph embed`` is killed, interrupted, spread over processes and short of memory, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from seqgraph.cli.main import main
from seqgraph.errors import DataError
from seqgraph.train import checkpoint
from seqgraph_lc_plm.extract import Extraction
from seqgraph_lc_plm.progress import ResidueProgress


@pytest.fixture
def weights(tiny, tmp_path):
    fields = {"d_model": 16, "n_layers": 2, "d_state": 4, "vocab_size": 40}
    return checkpoint.save(tmp_path / "weights", tiny, name="lc-plm", fields=fields)


@pytest.fixture
def fasta(tmp_path, proteins):
    """60 proteins: several parts of a few batches of 40 tokens."""
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">p{i} x\n{s}\n" for i, s in enumerate(proteins(*[5 + i * 7 % 31 for i in range(60)]))))
    return path


def contents(folder):
    """{path within the folder: bytes} of everything in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _env():
    return {**os.environ, "OMP_NUM_THREADS": "1", "SEQGRAPH_BACKEND": "reference"}


# Kills itself with -9 before or after the n-th rename, the only moments at which anything changes for a reader, for
# every n there is; a fork each, since a new process would need seconds to import torch.
_KILLER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import seqgraph
from seqgraph_lc_plm import folder
from seqgraph_lc_plm.extract import Extraction

weights, fasta, out, options = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), eval(sys.argv[4])
model = seqgraph.load(weights)
job = Extraction(fasta=fasta, max_tokens=40, **options)
job.survey
replace, rename = os.replace, Path.rename

def forked(work):
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def run(path, kill_at, **more):
    count = 0
    def dying(rename):
        def call(*arguments):
            nonlocal count
            for late in (False, True):
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                if not late:
                    rename(*arguments)
        return call
    folder.os.replace, folder.Path.rename = dying(replace), dying(rename)
    job.run(model, path, **more)

def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}

assert forked(lambda: run(out / "whole", -1)) == 0
whole = contents(out / "whole")
n, killed = 0, 0
while True:
    path = out / f"killed-{n}"
    status = forked(lambda: run(path, n))
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
    assert all(whole.get(k, v) == v for k, v in contents(path).items() if not k.startswith(".")), n
    # Once more in the midst of going on, then to the end.
    forked(lambda: run(path, 3, resume=True))
    assert forked(lambda: run(path, -1, resume=True)) == 0
    assert contents(path) == whole, n
    n += int(sys.argv[5])
print(killed)
"""


@pytest.mark.parametrize(
    "options, step",
    [
        ({}, 11),
        ({"format": "npy", "include": ("mean", "per_tok")}, 17),
        ({"format": "safetensors", "shard_bytes": 12000, "include": ("per_tok",)}, 1),
        ({"format": "pt", "shard_bytes": 12000, "include": ("mean", "per_tok")}, 2),
        ({"format": "h5", "shard_bytes": 12000, "include": ("mean", "per_tok")}, 2),
    ],
    ids=["pt", "npy", "safetensors-shards", "pt-shards", "h5-shards"],
)
def test_killed_at_any_rename_it_resumes_to_the_same_bytes(weights, tmp_path, proteins, options, step):
    if options.get("format") == "h5":
        pytest.importorskip("h5py")
    (tmp_path / "runs").mkdir()
    fasta = tmp_path / "few.fasta"
    fasta.write_text("".join(f">p{i} x\n{s}\n" for i, s in enumerate(proteins(*[30] * 24))))
    words = [str(weights), str(fasta), str(tmp_path / "runs"), repr(options), str(step)]
    done = subprocess.run([sys.executable, "-c", _KILLER, *words], capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 4


def test_the_command_killed_in_the_midst(weights, tmp_path, proteins):
    fasta = tmp_path / "many.fasta"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins(*[50] * 1500))))
    command = [sys.executable, "-m", "seqgraph", "embed", str(weights), str(fasta)]
    options = ["--toks_per_batch", "520", "--nogpu"]
    first = subprocess.Popen([*command, str(tmp_path / "a"), *options], env=_env(), stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while len(list((tmp_path / "a").glob(".unfinished/part-*.json"))) < 2 and time.monotonic() < until:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "a" / ".unfinished").is_dir() and not (tmp_path / "a" / "manifest.json").exists()
    refused = main([*command[3:], str(tmp_path / "a"), *options])
    assert refused == 2
    assert main([*command[3:], str(tmp_path / "a"), *options, "--resume"]) == 0
    assert main([*command[3:], str(tmp_path / "b"), *options]) == 0
    first_set, second_set = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert len(first_set) == 1502 and first_set.keys() == second_set.keys()
    # Other kernels may have computed the first parts (SEQGRAPH_BACKEND above): compare the rest by their bytes.
    different = [name for name in first_set if first_set[name] != second_set[name]]
    assert "index.tsv" not in different and "manifest.json" not in different and len(different) < 1000


def test_two_processes_give_what_one_gives(weights, fasta, tmp_path):
    command = ["-m", "seqgraph", "embed", str(weights), str(fasta)]
    options = ["--toks_per_batch", "40", "--include", "mean", "per_tok", "--nogpu"]
    alone = subprocess.run([sys.executable, *command, str(tmp_path / "one"), *options], env=_env())
    assert alone.returncode == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, *command, str(tmp_path / "two"), *options], env=_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("60 proteins") == 1  # rank 0 alone speaks
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    bad = tmp_path / "bad.fasta"
    bad.write_text(">a\nMK1\n")
    command[4] = str(bad)
    done = subprocess.run(
        [*launcher, *command, str(tmp_path / "three"), *options], env=_env(), capture_output=True, text=True
    )
    assert done.returncode != 0 and done.stderr.count("letter '1' at position 3") == 1


def test_a_world_without_a_launcher(weights, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["embed", str(weights), str(fasta), str(tmp_path / "out")]) == 2
    assert "start it with torchrun" in capsys.readouterr().err


# ---------------------------------------------------------------------- folders
def test_an_unfinished_run_is_neither_lost_nor_mixed(tiny, fasta, tmp_path):
    job = Extraction(fasta=fasta, max_tokens=40)

    def stop(records, residues, new):
        if (tmp_path / "out" / ".unfinished" / "part-000000.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(tiny, tmp_path / "out", progress=stop)
    with pytest.raises(DataError, match=r"unfinished run, \d parts of it done") as caught:
        job.run(tiny, tmp_path / "out")
    assert "--resume" in caught.value.hint
    with pytest.raises(DataError, match=r"another job: layers was \[2\], is \[1\]"):
        Extraction(fasta=fasta, max_tokens=40, layers=(1,)).run(tiny, tmp_path / "out", resume=True)
    fasta.write_text(fasta.read_text().replace("p7 x", "q7 x"))
    with pytest.raises(DataError, match="another job: sequences was"):
        Extraction(fasta=fasta, max_tokens=40).run(tiny, tmp_path / "out", resume=True)
    Extraction(fasta=fasta, max_tokens=40).run(tiny, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "q7 x.pt").exists()


def test_other_weights_are_another_job(tiny, fasta, tmp_path):
    Extraction(fasta=fasta).run(tiny, tmp_path / "out")
    with torch.no_grad():
        tiny.lm_head.weight[0] += 1e-3
    with pytest.raises(DataError, match="another job: weights was"):
        Extraction(fasta=fasta).run(tiny, tmp_path / "out", resume=True)


def test_resume_of_what_is_complete_or_not_begun(tiny, fasta, tmp_path):
    job, notes, done = Extraction(fasta=fasta), [], []
    job.run(tiny, tmp_path / "out", resume=True)
    before = contents(tmp_path / "out")
    job.run(tiny, tmp_path / "out", resume=True, note=notes.append, progress=lambda *n: done.append(n))
    assert "nothing was left to do" in notes[0] and not done and contents(tmp_path / "out") == before


def test_shards_are_not_mixed_with_those_of_another_job(tiny, fasta, tmp_path):
    Extraction(fasta=fasta, format="safetensors", shard_bytes=500).run(tiny, tmp_path / "out")
    job = Extraction(fasta=fasta, format="safetensors", shard_bytes=10**6)
    with pytest.raises(DataError, match="holds embeddings already"):
        job.run(tiny, tmp_path / "out")
    job.run(tiny, tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out").glob("part-*"))) == 1


def test_ctrl_c_says_how_to_go_on(weights, fasta, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("seqgraph_lc_plm.base.TokenModel.represent", interrupt)
    assert main(["embed", str(weights), str(fasta), str(tmp_path / "out"), "--nogpu"]) == 130
    err = capsys.readouterr().err
    assert "--resume goes on" in err and "Traceback" not in err
    monkeypatch.undo()
    assert main(["embed", str(weights), str(fasta), str(tmp_path / "out"), "--nogpu", "--resume"]) == 0


# ---------------------------------------------------------------------- memory
def _short_of_memory(monkeypatch, model, bound):
    """Have forward passes of more tokens than that run out of memory; returns the sizes of those that did not."""
    whole, sizes = type(model).represent, []

    def represent(self, stream, *arguments, **options):
        if stream.num_tokens > bound:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(stream.num_tokens)
        return whole(self, stream, *arguments, **options)

    monkeypatch.setattr(type(model), "represent", represent)
    return sizes


def test_out_of_memory_halves_the_budget_and_says_so(tiny, fasta, tmp_path, monkeypatch):
    Extraction(fasta=fasta, max_tokens=160).run(tiny, tmp_path / "plenty")
    sizes = _short_of_memory(monkeypatch, tiny, 50)
    notes = []
    Extraction(fasta=fasta, max_tokens=160).run(tiny, tmp_path / "out", note=notes.append)
    assert notes == [f"out of memory: going on with {n} tokens a batch" for n in (80, 40)]
    assert max(sizes) <= 50 and sum(sizes) == 60 * 2 + sum(5 + i * 7 % 31 for i in range(60))
    few, many = contents(tmp_path / "out"), contents(tmp_path / "plenty")
    assert few.keys() == many.keys() and few["index.tsv"] == many["index.tsv"]
    for i in range(60):
        values = [
            torch.load(tmp_path / name / f"p{i} x.pt", weights_only=True)["mean_representations"][2]
            for name in ("out", "plenty")
        ]
        torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)


def test_out_of_memory_for_one_protein(tiny, fasta, tmp_path, monkeypatch):
    _short_of_memory(monkeypatch, tiny, 30)
    with pytest.raises(DataError, match=r"does not suffice for record \d+ \(p\d+ x\) of \d+ residues by itself") as got:
        Extraction(fasta=fasta, max_tokens=160).run(tiny, tmp_path / "out")
    assert "--nogpu" in got.value.hint
    monkeypatch.undo()
    Extraction(fasta=fasta, max_tokens=160).run(tiny, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_out_of_memory_for_contacts_takes_fewer_copies(tiny, small_memory, tmp_path, proteins, monkeypatch):
    path = tmp_path / "few.fasta"
    path.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins(7, 9))))
    job = Extraction(fasta=path, include=("contacts",), max_tokens=200)
    job.run(tiny, tmp_path / "plenty")
    small_memory(tiny, num_tokens=60)
    notes: list[str] = []
    job.run(tiny, tmp_path / "out", note=notes.append)
    assert notes == [f"out of memory: going on with {n} tokens a batch" for n in (100, 50)]
    for name in ("p0", "p1"):
        values = [torch.load(tmp_path / way / f"{name}.pt", weights_only=True) for way in ("out", "plenty")]
        torch.testing.assert_close(values[0]["contacts"], values[1]["contacts"], atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(type(tiny), "forward", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(DataError, match=r"does not suffice for record \d \(p\d\) of \d residues by itself"):
        job.run(tiny, tmp_path / "none")


def test_other_errors_are_not_taken_for_want_of_memory(tiny, fasta, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(type(tiny), "represent", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        Extraction(fasta=fasta).run(tiny, tmp_path / "out")


_TITIN = """
import resource, sys
from pathlib import Path
import seqgraph
from seqgraph_lc_plm.extract import Extraction
model = seqgraph.load(sys.argv[1])
Extraction(fasta=Path(sys.argv[2])).run(model, Path(sys.argv[3]) / "short")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Extraction(fasta=Path(sys.argv[4]), include=("mean", "per_tok")).run(model, Path(sys.argv[3]) / "long")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_protein_of_30000_residues_whole_and_in_bounded_memory(weights, fasta, tmp_path, proteins):
    path = tmp_path / "titin.fasta"
    path.write_text(f">titin\n{proteins(30000)[0]}\n")
    words = [str(weights), str(fasta), str(tmp_path), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _TITIN, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000  # kB; 30,000 x 30,000 floats would be 3,500,000
    content = torch.load(tmp_path / "long" / "titin.pt", weights_only=True)
    assert content["representations"][2].shape == (30000, 16)


# ---------------------------------------------------------------------- progress
def test_progress_in_a_log_tells_speed_and_time_left(capsys):
    clock = iter([0.0, 0.0, 10.0, 10.0, 100.0, 100.0, 100.0, 100.0, 100.0])
    with ResidueProgress("embedding", 10, 1000, clock=lambda: next(clock)) as progress:
        progress(5, 500, False)  # was there before: no speed
        progress(1, 100, True)
    err = capsys.readouterr().err
    assert "embedding: 6/10 proteins, 1 residues/s, 0:06:40 left" in err
