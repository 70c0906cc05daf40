"""The machine as this process finds it: right figures, and no probe that fails raises."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from child import run_code
from zmrs import limits, probe
from zmrs.limits import MemoryLimit
from zmrs.probe import Capabilities, detect_capabilities

MIB, GIB = 1 << 20, 1 << 30

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

Lay = Callable[[dict[str, str | bytes | None]], None]


def failing(error: BaseException | None = None) -> Callable[..., Any]:
    """A function that always raises."""

    def fail(*_: object, **__: object) -> Any:
        raise error or RuntimeError("broken")

    return fail


def kib(size: int) -> str:
    return f"{size >> 10} kB"


STATUS = f"Name:\tpython\nVmRSS:\t{kib(100 * MIB)}\nRssAnon:\t{kib(60 * MIB)}\n"
MACHINE: dict[str, str | bytes | None] = {
    "proc/meminfo": f"MemTotal: {kib(64 * GIB)}\nMemFree: 1 kB\nMemAvailable: {kib(48 * GIB)}\n",
    "proc/self/status": STATUS + f"VmHWM:\t{kib(150 * MIB)}\n",
    "proc/self/cgroup": "0::/job/step\n",
}


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Puts files on a machine of 16 processors; None is a folder where a file should be."""
    monkeypatch.setattr(limits, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def put(files: dict[str, str | bytes | None]) -> None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)

    put(MACHINE)
    return put


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a GPU of this machine, or heeds what its environment says of it."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delenv("ZMRS_GPU_SAFE_MODE", raising=False)


def cgroup_limits() -> list[tuple[int, int]]:
    """Bytes and others' bytes of each cgroup limit, all of them hard."""
    found = [limit for limit in limits.memory_limits() if limit.source == "cgroup memory limit"]
    assert all(limit.is_hard for limit in found)
    return [(limit.bytes, limit.others_bytes) for limit in found]


def limit_from(word: str) -> MemoryLimit:
    """The one limit whose source has a word."""
    (found,) = [limit for limit in limits.memory_limits() if word in limit.source]
    return found


# ----------------------------------------------------------------------------------- the value


def test_nothing_is_known_by_default() -> None:
    values = dataclasses.asdict(Capabilities())
    flags = {"gpu_available", "gpu_safe_mode", "on_battery"}
    assert {name for name, value in values.items() if value is False} == flags
    assert {name: value for name, value in values.items() if value is not None} == {
        "system": "", "limits": (), "gpu_note": "", **dict.fromkeys(flags, False),
    }  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Capabilities)])
def test_nothing_can_be_set_or_deleted(name: str) -> None:
    caps = Capabilities()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(caps, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(caps, name)
    assert caps == Capabilities()


def test_values_compare_and_hash() -> None:
    limit = MemoryLimit("the barn", 1000)
    caps = Capabilities(cpu_cores=3, limits=(limit,))
    assert len({caps, Capabilities(cpu_cores=3, limits=(limit,)), Capabilities()}) == 2
    assert pickle.loads(pickle.dumps(caps)) == caps
    with pytest.raises(dataclasses.FrozenInstanceError):
        limit.bytes = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("NVIDIA H100 PCIe", "nvidia"), ("GeForce GTX 970", "nvidia"), ("Intel(R) Arc", "intel"),
        ("AMD Instinct MI250", "amd"), ("Apple M3", "apple"), ("Matrox G200", "unknown"),
        ("", "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_the_vendor_follows_from_the_name(name: str | None, vendor: str) -> None:
    assert Capabilities(gpu_name=name).gpu_vendor == vendor


@pytest.mark.parametrize(("held", "room"), [(0, 1000), (300, 700), (1000, 1), (5000, 1)], ids=str)
def test_the_room_under_a_limit(held: int, room: int) -> None:
    assert MemoryLimit("the barn", 1000, others_bytes=held).room_bytes == room


# -------------------------------------------------------------------------------- this machine


def test_this_machine() -> None:
    caps = detect_capabilities()
    assert caps.system == {"win32": "windows"}.get(sys.platform, sys.platform)
    assert caps.cpu_logical_cores is not None
    assert caps.cpu_cores is not None
    assert 1 <= caps.cpu_cores <= caps.cpu_logical_cores <= (os.cpu_count() or 1)
    assert caps.ram_total_bytes is not None
    assert caps.ram_available_bytes is not None
    assert 0 < caps.ram_available_bytes < caps.ram_total_bytes
    assert 64 * MIB < caps.ram_total_bytes <= psutil.virtual_memory().total
    assert limits.AVAILABLE in {limit.source for limit in caps.limits}
    assert caps.on_battery == (caps.power_plugged is False)
    assert not caps.gpu_available


def test_the_gpu_of_this_machine() -> None:
    code = "import json, zmrs.probe as p; print(json.dumps(vars(p.detect_capabilities()), "
    done = run_code(code + "default=vars))")
    assert (done.status, done.remarks) == (0, [])
    caps = json.loads(done.out)
    figures = [caps[f"gpu_{name}"] for name in ("name", "vram_total_bytes", "vram_free_bytes")]
    if caps["gpu_available"]:
        assert caps["gpu_note"] == ""
        assert 0 < figures[2] <= figures[1]
        assert figures[0]
    else:
        assert caps["gpu_note"].startswith("CuPy ")
        assert figures == [None] * 3


@linux
@pytest.mark.parametrize("call", ["detect_capabilities(gpu=False)", "detect_capabilities()"])
def test_affinity_is_respected(call: str) -> None:
    code = (
        "import os; from zmrs.probe import detect_capabilities\n"
        "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
        f"caps = {call}; print(caps.cpu_logical_cores, caps.cpu_cores)"
    )
    done = run_code(code)
    assert done.out.split() == ["1", "None" if "False" in call else "1"], done.err


@linux
def test_the_address_space_limit_is_respected() -> None:
    code = (
        "import json, resource; from zmrs.probe import detect_capabilities\n"
        "most = resource.getrlimit(resource.RLIMIT_AS)[1]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, most))\n"
        "print(json.dumps(vars(detect_capabilities(gpu=False)), default=vars))"
    )
    done = run_code(code)
    caps = json.loads(done.out)
    (limit,) = [limit for limit in caps["limits"] if "address-space" in limit["source"]]
    assert limit["is_hard"]
    assert 0.9 * GIB < limit["bytes"] <= GIB
    assert caps["ram_available_bytes"] < caps["ram_total_bytes"] <= limit["bytes"]


@linux
def test_a_look_without_the_gpu_is_a_cheap_one() -> None:
    code = (
        "import sys; from zmrs.probe import Capabilities, detect_capabilities\n"
        "caps = detect_capabilities(gpu=False)\n"
        "print(*sorted({'psutil', 'cupy', 'numpy', 'ctypes'} & set(sys.modules)), 'loaded')\n"
        "print(caps.cpu_logical_cores, caps.cpu_cores, caps.gpu_note, caps.has_battery)"
    )
    done = run_code(code)
    brought, found = done.out.splitlines()
    assert brought == "loaded"
    assert found == f"{limits.usable_processors()} None not looked for None"


@linux
def test_resident_sizes_follow_what_is_held() -> None:
    code = (
        "from zmrs import limits\n"
        "def look(): print(limits.resident_bytes(), limits.peak_resident_bytes())\n"
        "look(); held = b'x' * (200 << 20); look(); del held; look()"
    )
    done = run_code(code)
    before, during, after = ([*map(int, line.split())] for line in done.out.splitlines())
    assert 150 * MIB < during[0] - before[0] < 250 * MIB
    assert after[0] < during[0] - 150 * MIB
    assert before[1] + 150 * MIB < during[1]
    assert during[1] >= during[0]
    assert abs(after[1] - during[1]) < MIB  # the kernel counts by CPU, and sums up roughly


# ------------------------------------------------------------------------- everything may fail


def test_a_machine_of_which_nothing_can_be_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("memory_limits", "usable_processors", "total_bytes", "resident_bytes"):
        monkeypatch.setattr(limits, name, failing())
    monkeypatch.setattr(probe, "Path", failing(OSError("no such thing")))
    monkeypatch.setitem(sys.modules, "psutil", None)
    caps = detect_capabilities()
    assert caps == Capabilities(system=caps.system, gpu_note="CuPy is not installed")
    assert caps.system


RAM = {"limits", "ram_total_bytes", "ram_available_bytes"}


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("memory_limits", RAM),
        ("resident_bytes", {"limits", "ram_available_bytes"}),
        ("available_bytes", {"limits"}),
        ("usable_processors", {"cpu_logical_cores", "cpu_cores"}),
        ("total_bytes", set()),
    ],
)
def test_one_failure_leaves_the_rest(
    name: str, lost: set[str], lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay({"cgroup/job/memory.max": str(GIB)})
    whole = vars(detect_capabilities())
    monkeypatch.setattr(limits, name, failing(MemoryError()))
    found = vars(detect_capabilities())
    assert {name for name in whole if found[name] != whole[name]} == lost


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "I/O error")])
def test_files_that_nobody_can_read(
    error: OSError, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay({"cgroup/job/memory.max": str(GIB), "cgroup/job/cpu.max": "100000 100000"})
    monkeypatch.setattr(Path, "read_text", failing(error))
    assert cgroup_limits() == []
    assert limits.usable_processors() == 16
    assert limits.resident_bytes() > MIB
    assert limits.total_bytes() == psutil.virtual_memory().total


def test_without_proc_psutil_tells(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(total=8 * GIB, available=2 * GIB),
        Process=lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB)),
    )
    monkeypatch.setattr(limits, "_PROC", Path("/nowhere"))
    monkeypatch.setitem(sys.modules, "psutil", told)
    assert (limits.total_bytes(), limits.available_bytes()) == (8 * GIB, 2 * GIB)
    assert (limits.resident_bytes(), limits.peak_resident_bytes()) == (GIB, GIB)
    assert limits.memory_limits() == [MemoryLimit(limits.AVAILABLE, 3 * GIB)]
    told.Process = lambda: SimpleNamespace(
        memory_info=lambda: SimpleNamespace(rss=GIB, peak_wset=5 * GIB)
    )
    assert limits.peak_resident_bytes() == 5 * GIB
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (8 * GIB, 2 * GIB)


@pytest.mark.parametrize("broken", [None, SimpleNamespace()])
def test_without_proc_and_psutil_memory_is_unknown(
    broken: Any, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_PROC", Path("/nowhere"))
    monkeypatch.setitem(sys.modules, "psutil", broken)
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes, caps.limits) == (None, None, ())
    assert caps.cpu_logical_cores == 16


# ---------------------------------------------------------------------------------- processors


@pytest.mark.parametrize(
    ("logical", "told", "cores"),
    [
        (8, 4, 4), (8, 8, 8), (8, 64, 8), (1, 4, 1),
        (8, None, 4), (9, None, 4), (1, None, 1), (8, 0, 4), (8, "many", 4),
    ],
)  # fmt: skip
def test_physical_cores(
    logical: int, told: Any, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    fake = SimpleNamespace(cpu_count=lambda logical: (asked.append(logical), told)[1])
    monkeypatch.setattr(limits, "usable_processors", lambda: logical)
    monkeypatch.setitem(sys.modules, "psutil", fake)
    caps = detect_capabilities()
    assert (caps.cpu_logical_cores, caps.cpu_cores) == (logical, cores)
    assert asked == [False]


@pytest.mark.parametrize(
    "fake", [None, SimpleNamespace(), SimpleNamespace(cpu_count=failing(), sensors_battery=None)]
)
@pytest.mark.parametrize(("logical", "cores"), [(1, 1), (2, 1), (7, 3), (64, 32)])
def test_physical_cores_without_psutil(
    fake: Any, logical: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "usable_processors", lambda: logical)
    monkeypatch.setitem(sys.modules, "psutil", fake)
    caps = detect_capabilities()
    assert caps.cpu_cores == cores
    assert (caps.has_battery, caps.power_plugged, caps.on_battery) == (None, None, False)


@pytest.mark.parametrize("count", [12, 1, None])
@pytest.mark.parametrize("error", [OSError(38, "not implemented"), AttributeError(), None])
def test_processors_without_affinity(
    count: int | None, error: Exception | None, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    else:
        monkeypatch.setattr(os, "sched_getaffinity", failing(error))
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert limits.usable_processors() == (count or 1)


V1_CPU = {"proc/self/cgroup": "7:cpuset:/\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n"}


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cgroup/job/step/cpu.max": "150000 100000"}, 2),
        ({"cgroup/job/step/cpu.max": "140000 100000\n"}, 1),
        ({"cgroup/job/step/cpu.max": "1000 100000"}, 1),
        ({"cgroup/job/step/cpu.max": "9000000 100000"}, 16),
        ({"cgroup/job/step/cpu.max": "max 100000"}, 16),
        ({"cgroup/job/step/cpu.max": "max 100000", "cgroup/job/cpu.max": "300000 100000"}, 3),
        ({"cgroup/job/step/cpu.max": "500000 100000", "cgroup/job/cpu.max": "200000 50000"}, 4),
        ({"cgroup/cpu.max": "50000 10000"}, 5),
        ({"cgroup/unified/job/cpu.max": "600000 100000"}, 6),
        ({"cgroup/other/cpu.max": "100000 100000"}, 16),
        (V1_CPU | {
            "cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
            "cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "125000\n",
        }, 2),
        (V1_CPU | {
            "cgroup/cpu/job/cpu.cfs_quota_us": "-1",
            "cgroup/cpu/job/cpu.cfs_period_us": "100000",
            "cgroup/cpu/cpu.cfs_quota_us": "700000",
            "cgroup/cpu/cpu.cfs_period_us": "100000",
        }, 7),
        (V1_CPU | {
            "cgroup/cpu/job/cpu.cfs_quota_us": "-1",
            "cgroup/cpu/job/cpu.cfs_period_us": "100000",
        }, 16),
        (V1_CPU | {"cgroup/cpu/job/cpu.cfs_quota_us": "100000"}, 16),
        (V1_CPU | {"cgroup/cpu.max": "100000 100000"}, 16),
    ],
)  # fmt: skip
def test_cpu_quotas(files: dict[str, str | bytes | None], processors: int, lay: Lay) -> None:
    lay(files)
    assert limits.usable_processors() == processors
    caps = detect_capabilities()
    assert caps.cpu_logical_cores == processors
    assert 1 <= (caps.cpu_cores or 0) <= processors


# ------------------------------------------------------------------------ memory and its limits


def test_memory_without_limits(lay: Lay) -> None:
    assert limits.memory_limits() == [MemoryLimit(limits.AVAILABLE, 48 * GIB + 100 * MIB)]
    assert (limits.resident_bytes(), limits.peak_resident_bytes()) == (100 * MIB, 150 * MIB)
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (64 * GIB, 48 * GIB)
    assert caps.limits == tuple(limits.memory_limits())


V1_MEMORY = {"proc/self/cgroup": "9:memory:/job/step\n1:name=systemd:/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cgroup/job/step/memory.max": f"{GIB}\n"}, [GIB]),
        ({"cgroup/job/step/memory.max": str(2 * GIB), "cgroup/job/memory.max": str(GIB)},
         [GIB, 2 * GIB]),
        ({"cgroup/job/step/memory.max": "max\n", "cgroup/memory.max": str(3 * GIB)}, [3 * GIB]),
        ({"cgroup/job/step/memory.max": str(GIB), "cgroup/job/memory.max": str(GIB)}, [GIB]),
        ({"cgroup/unified/job/memory.max": str(GIB)}, [GIB]),
        ({"cgroup/job/step/memory.max": "max"}, []),
        ({"cgroup/job/step/memory.max": "0"}, []),
        ({"cgroup/job/memory.limit_in_bytes": str(GIB)}, []),
        ({"cgroup/other/memory.max": str(GIB)}, []),
        (V1_MEMORY | {"cgroup/memory/job/step/memory.limit_in_bytes": str(GIB)}, [GIB]),
        (V1_MEMORY | {
            "cgroup/memory/job/step/memory.limit_in_bytes": "9223372036854771712",
            "cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712",
            "cgroup/memory/memory.limit_in_bytes": str(5 * GIB),
        }, [5 * GIB]),
        (V1_MEMORY | {"cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712"}, []),
        (V1_MEMORY | {"cgroup/memory/job/memory.limit_in_bytes": "-1"}, []),
        ({"proc/self/cgroup": "4:cpu,memory:/job\n",
          "cgroup/cpu,memory/job/memory.limit_in_bytes": str(GIB)}, [GIB]),
        (V1_MEMORY | {
            "cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
            "cgroup/unified/memory.max": str(GIB),
        }, [GIB, 2 * GIB]),
    ],
)  # fmt: skip
def test_cgroup_memory_limits(
    files: dict[str, str | bytes | None], found: list[int], lay: Lay
) -> None:
    lay(files)
    assert cgroup_limits() == [(size, 0) for size in found]
    caps = detect_capabilities(gpu=False)
    least = min([*found, 64 * GIB])
    assert caps.ram_total_bytes == least
    assert caps.ram_available_bytes == min(least - 100 * MIB, 48 * GIB)


@pytest.mark.parametrize(
    "path", ["/docker/0123456789abcdef", "/../../init.scope", "/job (deleted)", "/", "//", ""]
)
def test_in_a_container_the_mount_itself_is_the_own_folder(path: str, lay: Lay) -> None:
    lay({
        "proc/self/cgroup": f"9:memory:{path}\n4:cpu:{path}\n0::{path}\n",
        "cgroup/memory/memory.limit_in_bytes": str(3 * GIB),
        "cgroup/memory/memory.stat": "cache 1\ntotal_rss 0\n",
        "cgroup/memory.max": str(2 * GIB),
        "cgroup/cpu/cpu.cfs_quota_us": "300000",
        "cgroup/cpu/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert cgroup_limits() == [(2 * GIB, 0), (3 * GIB, 0)]
    assert limits.usable_processors() == 3


@pytest.mark.parametrize("name", [b"with:colon", b"\xff\xfe", "größer".encode(), b"two words"])
def test_names_of_cgroups(name: bytes, lay: Lay, tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / os.fsdecode(name)
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(str(GIB))
    lay({"proc/self/cgroup": b"0::/" + name + b"\n"})
    assert cgroup_limits() == [(GIB, 0)]


@pytest.mark.parametrize(
    ("stat", "others"),
    [
        (f"anon {300 * MIB}\nfile {9 * GIB}\n", 240 * MIB),
        (f"file {9 * GIB}\nanon {300 * MIB}", 240 * MIB),
        (f"anon {60 * MIB}\n", 0),
        (f"anon {10 * MIB}\n", 0),
        (f"anon_thp {9 * GIB}\ntotal_rss {9 * GIB}\n", 0),
        ("", 0), ("anon\n", 0), ("anon much\n", 0), ("\n\n", 0), (b"\xff\xfe\x00", 0), (None, 0),
    ],
)  # fmt: skip
def test_what_others_hold(stat: str | bytes | None, others: int, lay: Lay) -> None:
    lay({"cgroup/job/memory.max": str(GIB), "cgroup/job/memory.stat": stat})
    assert cgroup_limits() == [(GIB, others)]
    caps = detect_capabilities(gpu=False)
    assert caps.ram_total_bytes == GIB
    assert caps.ram_available_bytes == GIB - others - 100 * MIB


def test_what_others_hold_under_version_1(lay: Lay) -> None:
    stat = f"rss 5\ntotal_cache {9 * GIB}\ntotal_rss {460 * MIB}\n"
    lay(V1_MEMORY | {
        "cgroup/memory/job/memory.limit_in_bytes": str(GIB),
        "cgroup/memory/job/memory.stat": stat,
    })  # fmt: skip
    assert cgroup_limits() == [(GIB, 400 * MIB)]


def test_under_one_figure_in_two_folders_the_fuller_one_counts(lay: Lay) -> None:
    lay({
        "cgroup/job/step/memory.max": str(GIB),
        "cgroup/job/step/memory.stat": f"anon {160 * MIB}\n",
        "cgroup/job/memory.max": str(GIB),
        "cgroup/job/memory.stat": f"anon {560 * MIB}\n",
    })  # fmt: skip
    assert cgroup_limits() == [(GIB, 500 * MIB)]


def test_a_limit_that_others_have_used_up(lay: Lay) -> None:
    lay({"cgroup/job/memory.max": str(GIB), "cgroup/job/memory.stat": f"anon {2 * GIB}\n"})
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (GIB, 0)


GARBAGE = [
    b"", b"\n", b"\x00", b"\xff\xfe\x00\x80", b"many", b"-5", b"1e9", b"0x10", b"12 kB", b":",
    b"::", b"0:", b"0::/\x00", b"0::/" + b"x" * 5000, b"memory", b"1:memory\n2:cpu",
    b"1:memory:\xff\xfe", b"9" * 5000, b"9" * 400, b"9" * 400 + b" 100000", b"100000 0", b"0 0",
    b"-1 -1", b"max", b"max max", b"1 2 3", b"MemTotal:", b"MemTotal: kB",
    b"VmRSS:\nVmSize: much", None,
]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content)[:24])
@pytest.mark.parametrize("name", MACHINE)
def test_garbage_in_proc(name: str, content: bytes | None, lay: Lay) -> None:
    lay({"cgroup/job/memory.max": str(GIB), "cgroup/job/cpu.max": "300000 100000"})
    lay({name: content})
    assert limits.usable_processors() == (16 if name.endswith("cgroup") else 3)
    assert cgroup_limits() == ([] if name.endswith("cgroup") else [(GIB, 0)])
    assert limits.resident_bytes() > 10 * MIB
    assert limits.peak_resident_bytes() > 10 * MIB
    caps = detect_capabilities(gpu=False)
    known = 64 * GIB if "meminfo" not in name else psutil.virtual_memory().total
    assert caps.ram_total_bytes == (known if name.endswith("cgroup") else min(GIB, known))
    assert caps.ram_available_bytes


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content)[:24])
def test_garbage_in_cgroups(content: bytes | None, lay: Lay) -> None:
    lay({
        "proc/self/cgroup": "9:memory:/v1\n4:cpu:/v1\n0::/v2\n",
        "cgroup/v2/memory.max": content,
        "cgroup/v2/cpu.max": content,
        "cgroup/memory/v1/memory.limit_in_bytes": content,
        "cgroup/cpu/v1/cpu.cfs_quota_us": content,
        "cgroup/cpu/v1/cpu.cfs_period_us": b"100000",
    })  # fmt: skip
    assert cgroup_limits() == []
    assert limits.usable_processors() == 16
    lay({"cgroup/cpu/v1/cpu.cfs_quota_us": "100000", "cgroup/cpu/v1/cpu.cfs_period_us": content})
    assert 1 <= limits.usable_processors() <= 16
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (64 * GIB, 48 * GIB)


def test_a_low_cgroup_limit_is_near_for_a_large_output(lay: Lay) -> None:
    assert not limits.near_system_limit(1 << 60)
    lay({"cgroup/job/memory.max": str(GIB)})
    assert limits.near_system_limit(GIB // 4 + 1)
    assert not limits.near_system_limit(GIB // 4)


# -------------------------------------------------------------------- limits of other authorities


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4 * GIB),
        ({"SLURM_MEM_PER_CPU": "512"}, 8 * GIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}, 2 * GIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "64"}, 8 * GIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "0"}, 8 * GIB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "four"}, 8 * GIB),
    ],
)
def test_the_batch_system(
    environment: dict[str, str], size: int, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limit = limit_from("batch system")
    assert limit.bytes == size
    assert limit.source.startswith("SLURM_MEM_PER_")
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (size, size - 100 * MIB)


@pytest.mark.parametrize("name", ["SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"])
@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "4096M", "1.5", "nan", "²", "①", "UNLIMITED", "9" * 30, "9" * 5000, "0x10"],
    ids=lambda value: value[:12],
)
def test_nonsense_of_the_batch_system(
    name: str, value: str, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = limits.memory_limits()
    monkeypatch.setenv(name, value)
    assert limits.memory_limits() == before
    assert detect_capabilities(gpu=False).ram_total_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("soft", "mapped", "size"),
    [
        (2 * GIB, GIB, GIB + 96 * MIB),
        (GIB, GIB, 100 * MIB),
        (GIB, 2 * GIB, 100 * MIB),
        (None, GIB, None),
        (GIB, None, None),
    ],
)
def test_the_room_for_mappings(
    soft: int | None, mapped: int | None, size: int | None, lay: Lay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    resource = pytest.importorskip("resource")
    soft = resource.RLIM_INFINITY if soft is None else soft
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    lay({"proc/self/status": STATUS + (f"VmSize: {kib(mapped)}\n" if mapped else "")})
    if size is None:
        assert [limit.source for limit in limits.memory_limits()] == [limits.AVAILABLE]
        return
    limit = limit_from("address-space")
    assert (limit.bytes, limit.is_hard) == (size, True)
    caps = detect_capabilities(gpu=False)
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (size, size - 100 * MIB)


def test_where_there_are_no_limits_on_mappings(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert [limit.source for limit in limits.memory_limits()] == [limits.AVAILABLE]


def windows(monkeypatch: pytest.MonkeyPatch, **libraries: Any) -> None:
    """Lets the system pass for Windows."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(**libraries), raising=False)


def test_the_commit_limit_of_windows(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def tell(reference: Any) -> int:
        status = reference._obj
        asked.append((ctypes.sizeof(status), status.length))
        status.commit_limit, status.commit_available = 80 * GIB, 3 * GIB
        return 1

    windows(monkeypatch, kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell))
    limit = limit_from("commit")
    assert (limit.bytes, limit.is_hard) == (3 * GIB + 100 * MIB, True)
    assert asked == [(64, 64)]
    caps = detect_capabilities(gpu=False)
    assert caps.system == "windows"
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (limit.bytes, 3 * GIB)


@pytest.mark.parametrize("answer", [lambda _: 0, failing(OSError("no entry")), None])
def test_a_commit_limit_that_is_not_told(
    answer: Any, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = {} if answer is None else {"GlobalMemoryStatusEx": answer}
    windows(monkeypatch, kernel32=SimpleNamespace(**kernel))
    assert [limit.source for limit in limits.memory_limits()] == [limits.AVAILABLE]


# ----------------------------------------------------------------------------------------- GPU


def fake_cupy(monkeypatch: pytest.MonkeyPatch, **runtime: Any) -> None:
    """A CuPy with one device of 8 GiB, unless told otherwise."""
    answers: dict[str, Any] = {
        "getDeviceCount": lambda: 1,
        "getDevice": lambda: 0,
        "getDeviceProperties": lambda _: {"name": b"NVIDIA H100", "totalGlobalMem": 8 * GIB},
        "memGetInfo": lambda: (6 * GIB, 8 * GIB),
    } | runtime
    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(**answers)))
    monkeypatch.setitem(sys.modules, "cupy", fake)


def gpu_found() -> tuple[str | None, int | None, int | None]:
    """Name, memory and free memory of a device that is there."""
    caps = detect_capabilities()
    assert caps.gpu_available is True
    assert caps.gpu_note == ""
    return caps.gpu_name, caps.gpu_vram_total_bytes, caps.gpu_vram_free_bytes


def note_without_gpu() -> str:
    """Why there is no device, of which nothing is said then."""
    caps = detect_capabilities()
    assert caps.gpu_available is False
    assert (caps.gpu_name, caps.gpu_vram_total_bytes, caps.gpu_vram_free_bytes) == (None,) * 3
    assert caps.gpu_vendor == "unknown"
    return caps.gpu_note


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"name": b"NVIDIA H100"}, "NVIDIA H100"),
        ({"name": "NVIDIA H100"}, "NVIDIA H100"),
        ({"name": b"  NVIDIA H100 \n"}, "NVIDIA H100"),
        ({"name": b"\xff GPU"}, "\ufffd GPU"),
        ({"name": b""}, None),
        ({"name": "   "}, None),
        ({"name": None}, None),
        ({}, None),
    ],
)
def test_names_of_devices(
    properties: dict[str, Any], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties["totalGlobalMem"] = 8 * GIB
    fake_cupy(monkeypatch, getDeviceProperties=lambda _: properties)
    assert gpu_found() == (name, 8 * GIB, 6 * GIB)


def test_the_current_device_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(
        monkeypatch,
        getDeviceCount=lambda: 4,
        getDevice=lambda: 2,
        getDeviceProperties=lambda index: {"name": f"GPU {index}", "totalGlobalMem": index},
    )
    assert gpu_found() == ("GPU 2", 2, 6 * GIB)


NAME, TOTAL, FREE = "NVIDIA H100", 8 * GIB, 6 * GIB


@pytest.mark.parametrize(
    ("runtime", "found"),
    [
        ({"getDeviceProperties": failing()}, (None, None, FREE)),
        ({"getDevice": failing()}, (None, None, FREE)),
        ({"getDeviceProperties": lambda _: None}, (None, None, FREE)),
        ({"getDeviceProperties": lambda _: {"name": NAME}}, (NAME, None, FREE)),
        ({"getDeviceProperties": lambda _: {"name": NAME, "totalGlobalMem": "much"}},
         (NAME, None, FREE)),
        ({"memGetInfo": failing()}, (NAME, TOTAL, None)),
        ({"memGetInfo": lambda: ()}, (NAME, TOTAL, None)),
        ({"memGetInfo": lambda: None}, (NAME, TOTAL, None)),
        ({"memGetInfo": lambda: (0, TOTAL)}, (NAME, TOTAL, None)),
        ({"memGetInfo": failing(MemoryError()), "getDevice": failing()}, (None, None, None)),
    ],
)  # fmt: skip
def test_a_device_whose_figures_cannot_be_read_is_one_all_the_same(
    runtime: dict[str, Any],
    found: tuple[str | None, int | None, int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_cupy(monkeypatch, **runtime)
    assert gpu_found() == found


class Mute(Exception):  # noqa: N818
    """An error that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("mute")


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (lambda: 0, "CuPy finds no CUDA device"),
        (lambda: -1, "CuPy finds no CUDA device"),
        (failing(RuntimeError("cudaErrorNoDevice: none detected.\nmore")),
         "CuPy finds no CUDA device: cudaErrorNoDevice: none detected"),
        (failing(ValueError()), "CuPy finds no CUDA device: ValueError"),
        (failing(ImportError("libcudart.so.12")), "CuPy finds no CUDA device: libcudart.so.12"),
        (failing(Mute()), "CuPy fails"),
    ],
)  # fmt: skip
def test_why_there_is_no_device(count: Any, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch, getDeviceCount=count)
    assert note_without_gpu() == note


def test_a_device_that_nobody_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch, getDeviceCount=failing(AssertionError("asked")))
    caps = detect_capabilities(gpu=False)
    assert (caps.gpu_available, caps.gpu_note) == (False, "not looked for")
    assert (caps.cpu_cores, caps.has_battery, caps.is_hybrid_graphics) == (None, None, None)


def test_a_cupy_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert note_without_gpu().startswith("CuPy finds no CUDA device: ")


RUNTIME = """
class runtime:
    getDeviceCount = staticmethod(lambda: 1)
    getDevice = staticmethod(lambda: 0)
    getDeviceProperties = staticmethod(lambda index: {"name": "H100", "totalGlobalMem": 8})
    memGetInfo = staticmethod(lambda: (6, 8))

class cuda:
    runtime = runtime
"""


@pytest.fixture
def cupy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is imported as CuPy."""
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "cupy.py"


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("raise ImportError('libcuda.so.1: cannot open.\\nHelp')",
         "CuPy fails: libcuda.so.1: cannot open"),
        ("import no_such_module", "CuPy fails: No module named 'no_such_module'"),
        ("raise RuntimeError('driver too old.\\nGet another.')", "CuPy fails: driver too old"),
        ("raise RuntimeError", "CuPy fails: RuntimeError"),
        ("raise OSError('  ')", "CuPy fails: OSError"),
        ("1 / 0", "CuPy fails: division by zero"),
        ("def", "CuPy fails: invalid syntax (cupy, line 1)"),
    ],
)  # fmt: skip
def test_a_cupy_that_cannot_be_imported(code: str, note: str, cupy_file: Path) -> None:
    cupy_file.write_text(code)
    assert note_without_gpu().replace("cupy.py", "cupy") == note


def test_a_cupy_that_complains(cupy_file: Path, recwarn: pytest.WarningsRecorder) -> None:
    cupy_file.write_text("import warnings\nwarnings.warn('several versions')\n" + RUNTIME)
    assert gpu_found() == ("H100", 8, 6)
    assert not recwarn.list


def test_without_cupy() -> None:
    assert note_without_gpu() == "CuPy is not installed"


@pytest.mark.parametrize(
    ("value", "is_on"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)]
)
def test_caution_that_the_environment_asks_for(
    value: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("ZMRS_GPU_SAFE_MODE", value)
    assert detect_capabilities().gpu_safe_mode is is_on


# --------------------------------------------------------------------------- power and graphics


@pytest.mark.parametrize(
    ("sensors", "found"),
    [
        (lambda: None, (False, None, False)),
        (lambda: SimpleNamespace(power_plugged=True), (True, True, False)),
        (lambda: SimpleNamespace(power_plugged=False), (True, False, True)),
        (lambda: SimpleNamespace(power_plugged=None), (True, None, False)),
        (lambda: SimpleNamespace(percent=50), (None, None, False)),
        (failing(), (None, None, False)),
        (failing(FileNotFoundError(2, "gone")), (None, None, False)),
        (None, (None, None, False)),
    ],
)
def test_power(
    sensors: Any, found: tuple[bool | None, bool | None, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(cpu_count=lambda logical: 2)
    if sensors is not None:
        fake.sensors_battery = sensors
    monkeypatch.setitem(sys.modules, "psutil", fake)
    caps = detect_capabilities()
    assert (caps.has_battery, caps.power_plugged, caps.on_battery) == found


@pytest.mark.parametrize(
    ("cards", "is_hybrid"),
    [
        (["0x8086", "0x10de"], True), (["0x1002", "0x8086"], True),
        (["0x8086", "0x10de", "0x10de"], True),
        (["0x8086"], False), (["0x10de"], False), (["0x1a03"], False),
        (["0x10de", "0x10de"], None), (["0x1a03", "0x10de"], None), (["0x1002", "0x10de"], None),
        ([], None), (["garbage", ""], None), (["0x8086", None], None),
    ],
)  # fmt: skip
def test_graphics_of_linux(
    cards: list[str | None], is_hybrid: bool | None, lay: Lay, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A card has connectors beside it, which are no cards."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(probe, "Path", lambda path: tmp_path / path.lstrip("/"))
    for number, vendor in enumerate(cards):
        lay({f"sys/devices/gpu{number}/vendor": None if vendor is None else f"{vendor}\n"})
        for name in (f"card{number}", f"card{number}-HDMI-A-1", f"renderD{128 + number}"):
            folder = tmp_path / "sys/class/drm" / name
            folder.mkdir(parents=True)
            (folder / "device").symlink_to(tmp_path / f"sys/devices/gpu{number}")
    assert detect_capabilities().is_hybrid_graphics is is_hybrid


@pytest.mark.parametrize(
    ("adapters", "is_hybrid"),
    [
        (["Intel(R) UHD Graphics", "NVIDIA GeForce RTX 3060"], True),
        (["AMD Radeon(TM) Graphics", "NVIDIA GeForce RTX 3060"], True),
        (["NVIDIA GeForce RTX 3060"] * 4, False),
        (["Intel(R) Arc(TM) A770"], False),
        ([], None),
    ],
)
def test_graphics_of_windows(
    adapters: list[str], is_hybrid: bool | None, lay: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows lists an adapter once for each of its outputs."""

    def tell(_: None, index: int, reference: Any, __: int) -> int:
        if index >= len(adapters):
            return 0
        assert reference._obj.size == ctypes.sizeof(reference._obj)
        reference._obj.name = adapters[index]
        return 1

    windows(monkeypatch, user32=SimpleNamespace(EnumDisplayDevicesW=tell))
    assert detect_capabilities().is_hybrid_graphics is is_hybrid


def test_graphics_that_windows_does_not_tell(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    windows(monkeypatch, user32=SimpleNamespace(EnumDisplayDevicesW=failing(OSError("none"))))
    assert detect_capabilities().is_hybrid_graphics is None
