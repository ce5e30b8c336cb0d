"""From stored benchmarks to tables in documents, and to whether these are current."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.analysis.report.benchmarks import PerformanceError, report, stale
from isoflop.results.record import write_record
from tests.bench.cells import make_record

BLOCK = "before\n<!-- isoflop:performance benchmarks -->\nold\n<!-- /isoflop -->\nafter\n"


def times(side: str, forward: float, step: float) -> dict:
    return {
        "side": side,
        "forward_seconds": forward,
        "step_seconds": step,
        "peak_bytes": 5e7,
    }


def stored(kind: str = "CPU", device: str = "Some CPU") -> dict:
    """A file's contents: one problem, 1 GB at 10 GB/s in a copy, and three implementations."""
    return {
        "machine_info": {
            "kind": kind,
            "device": device,
            "threads": 2,
            "torch": "2.13.0",
            "dtype": "float32",
            "copy_bytes_per_second": 1e10,
            "matmul_flops_per_second": 1e12,
        },
        "datetime": "2030-01-02",
        "benchmarks": [
            {
                "name": "test_mix",
                "stats": {"median": 0.8},
                "extra_info": {
                    "problem": "mix",
                    "bytes_forward": 1e9,
                    "flops_forward": 0.0,
                    "ours": times("ours", 0.2, 0.8),
                    "others": [
                        times("gather", 0.5, 4.0),
                        {"side": "rival", "failed": "out of memory"},
                    ],
                },
            }
        ],
    }


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    directory = tmp_path / "benchmarks"
    directory.mkdir()
    return directory


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(BLOCK)
    return path


def store(directory: Path, name: str, contents: dict) -> None:
    (directory / name).write_text(json.dumps(contents))


def cells(text: str, row: str) -> list[str]:
    """Of the first table row that begins with `row`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_are_generated(benchmarks: Path, document: Path) -> None:
    store(benchmarks, "cpu.json", stored())
    report(benchmarks, document)
    page, text = (benchmarks / "README.md").read_text(), document.read_text()
    # 1 GB in 0.2 s, where the limit is 0.1 s; 3 GB in 0.8 s, where it is 0.3 s
    assert cells(page, "mix     | ours") == [
        *("mix", "ours", "200", "800", "1.00", "", "5", "50", "3.75", "38", "50"),
    ]
    assert cells(page, "mix     | gather")[4] == "5.00"
    assert cells(page, "mix     | rival")[2:4] == ["out of memory", "-"]
    assert cells(text, "mix") == [
        *("mix", "200 / 800", "50 / 38", "50", "gather 5.00x; rival: out of memory", ""),
    ]
    assert "Some CPU, 2 threads, torch 2.13.0, float32, 2030-01-02: 10 GB/s in a copy" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /isoflop -->\nafter\n")
    assert "old" not in text


def test_ratios_in_a_worker_have_a_column(benchmarks: Path, document: Path) -> None:
    contents = stored()
    gather = contents["benchmarks"][0]["extra_info"]["others"][0]
    gather |= {"ratio": [5.0, 4.0, 6.0], "ratio_in_worker": [3.0, 2.5, 3.5]}
    store(benchmarks, "cpu.json", contents)
    report(benchmarks, document)
    assert cells((benchmarks / "README.md").read_text(), "mix     | gather")[4:6] == [
        *("5.00 [4.00, 6.00]", "3.00 [2.50, 3.50]"),
    ]
    assert cells(document.read_text(), "mix")[4:] == [
        *("gather 5.00x [4.00, 6.00]; rival: out of memory", "gather 3.00x [2.50, 3.50]"),
    ]


def test_ratios_of_steps_are_listed(benchmarks: Path, document: Path) -> None:
    contents = stored()
    for variant in ("dense", "peer"):
        ratios = {"what": "share of the peak", "ratios": {variant: 0.456}}
        contents["benchmarks"].append({"name": variant, "extra_info": ratios})
    store(benchmarks, "cpu.json", contents)
    report(benchmarks, document)
    for path in (document, benchmarks / "README.md"):
        assert "\n- share of the peak: dense 0.46, peer 0.46.\n" in path.read_text()


def test_the_limit_is_the_larger_of_bytes_and_flops(benchmarks: Path, document: Path) -> None:
    contents = stored()
    contents["benchmarks"][0]["extra_info"]["flops_forward"] = 2e11  # 0.2 s
    store(benchmarks, "cpu.json", contents)
    report(benchmarks, document)
    assert cells(document.read_text(), "mix")[2] == "100 / 75"


def test_what_is_not_measured_is_said(benchmarks: Path, document: Path) -> None:
    report(benchmarks, document)
    assert "No CPU has been measured." in document.read_text()
    assert "no GPU time is claimed" in document.read_text()
    store(benchmarks, "cpu.json", stored())
    report(benchmarks, document)
    assert "No CPU" not in document.read_text()
    assert "no GPU time is claimed" in document.read_text()
    store(benchmarks, "h100.json", stored("GPU", "NVIDIA H100"))
    report(benchmarks, document)
    assert "no GPU time" not in document.read_text()
    assert "\nNVIDIA H100, torch" in document.read_text()
    assert "## NVIDIA H100\n" in (benchmarks / "README.md").read_text()


def test_a_changed_file_is_stale(benchmarks: Path, document: Path) -> None:
    store(benchmarks, "cpu.json", stored())
    assert stale(benchmarks, document) == [benchmarks / "README.md", document]
    report(benchmarks, document)
    assert stale(benchmarks, document) == []
    document.write_text(document.read_text().replace("5.00x", "50.0x"))
    assert stale(benchmarks, document) == [document]
    report(benchmarks, document)
    store(benchmarks, "h100.json", stored("GPU"))
    assert stale(benchmarks, document) == [benchmarks / "README.md", document]


def test_without_a_directory_only_the_document_is_generated(tmp_path: Path, document: Path) -> None:
    report(tmp_path / "benchmarks", document)
    assert sorted(tmp_path.iterdir()) == [document]
    assert stale(tmp_path / "benchmarks", tmp_path / "none.md") == []


def test_a_bad_file_is_one_line_that_names_it(benchmarks: Path, document: Path) -> None:
    for contents, where in (
        ("{", "bad.json: Invalid JSON"),
        ('{"benchmarks": []}', "machine_info: missing"),
        (json.dumps(stored() | {"benchmarks": []}), "benchmarks: List should have at least 1"),
        (json.dumps(stored("abacus")), "machine_info.kind: Input should be 'CPU' or 'GPU'"),
    ):
        (benchmarks / "bad.json").write_text(contents)
        with pytest.raises(PerformanceError, match=r"bad\.json: ") as caught:
            report(benchmarks, document)
        assert where in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_command_line_keeps_documents_current(tmp_path: Path) -> None:
    directory, document = tmp_path / "results" / "benchmarks", tmp_path / "README.md"
    directory.mkdir(parents=True)
    document.write_text(BLOCK.replace("benchmarks", "results/benchmarks"))
    store(directory, "cpu.json", stored())
    for seed in range(3):
        record = make_record(cell=f"cell{seed}", seed=seed)
        write_record(tmp_path / "runs" / "tiny" / "records", record)

    def isoflop(verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "isoflop", verb],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=False,
        )

    assert isoflop("report").returncode == 0
    assert "gather 5.00x" in document.read_text()
    assert isoflop("check").returncode == 0
    document.write_text(document.read_text().replace("5.00x", "50.0x"))
    done = isoflop("check")
    assert (done.returncode, "README.md" in done.stdout) == (1, True)
    (directory / "cpu.json").write_text("{")
    done = isoflop("check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"isoflop: {Path('results/benchmarks/cpu.json')}: Invalid JSON")
    assert done.stderr.count("\n") == 1


def test_torch_is_never_imported() -> None:
    code = "import sys, isoflop.analysis.report.benchmarks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
