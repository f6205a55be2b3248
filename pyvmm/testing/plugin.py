"""The pytest plugin: `vm`, a guest that each test finds as it was when it was ready, and `machine_factory`.

    @pytest.mark.pyvmm(kernel="vmlinuz", initrd="initrd.gz", cmdline="console=ttyS0", devices=["edu.py:Edu"], ready="#")
    def test_the_driver(vm):
        assert vm.run("insmod edu.ko").status == 0

The marker's words are those of MachineConfig, and `ready`. Each configuration is booted once a session, where a test
first wants it. With --pyvmm-lifecycle each test that has a `vm` is two: [booted] has the machine that was booted, put
back in place, [restored] another one, made for it from its snapshot's file: a device that keeps less in STATE than its
guest sees fails there. What imports the machine is imported when it is wanted: pytest loads this file in every project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm.errors import UserError

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine
    from pyvmm.testing.vm import BootedVm, GuestVm

GUEST = {"guest": "hello", "ready": "powers off."}
"""Without a marker."""
LIVES = ("booted", "restored")
"""What --pyvmm-lifecycle runs each test on."""
_vm = pytest.StashKey["GuestVm"]()
_vms = pytest.StashKey[dict[str, "BootedVm"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyvmm")
    group.addoption(
        "--pyvmm-artifacts",
        type=Path,
        metavar="DIR",
        help="where a test that fails leaves a picture of its guest's screen and a snapshot (pyvmm run --restore)",
    )
    group.addoption(
        "--pyvmm-lifecycle",
        action="store_true",
        help="run each test that has a vm twice: on the machine that was booted, and on one restored from its file",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "pyvmm(ready=..., kernel=..., devices=[...], ...): the guest that the fixture vm is; see MachineConfig",
    )
    config.stash[_vms] = {}


def pytest_unconfigure(config: pytest.Config) -> None:
    for vm in config.stash.get(_vms, {}).values():
        vm.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pyvmm_life" in metafunc.fixturenames and metafunc.config.getoption("--pyvmm-lifecycle"):
        metafunc.parametrize("pyvmm_life", LIVES, indirect=True)


def _wanted(node: pytest.Item) -> dict[str, Any]:
    marker = node.get_closest_marker("pyvmm")
    wanted = dict(GUEST if marker is None else marker.kwargs)
    if "ready" not in wanted:
        raise pytest.UsageError(f"{node.nodeid}: pyvmm(ready=...) names the text that the guest shows when it is ready")
    return wanted


def _machine_config(wanted: dict[str, Any]) -> Any:
    from pyvmm.config import MachineConfig

    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in wanted.items()}
    for name in ("kernel", "initrd"):
        match fields.get(name):
            case str(file):
                fields[name] = Path(file)
            case tuple(files):
                fields[name] = tuple(Path(file) if isinstance(file, str) else file for file in files)
    return MachineConfig(**fields)


@pytest.fixture
def pyvmm_life(request: pytest.FixtureRequest) -> str:
    """Which of LIVES the test's vm has."""
    return getattr(request, "param", LIVES[0])


@pytest.fixture
def vm(request: pytest.FixtureRequest, pyvmm_life: str) -> Iterator[GuestVm]:
    """The guest of the marker `pyvmm`, as it was when it was ready."""
    key, booted = _booted(request)
    if pyvmm_life == "restored":
        try:
            vm = booted.another()
        except UserError as error:
            pytest.fail(f"{request.node.nodeid}: {error}", pytrace=False)
        request.node.stash[_vm] = vm
        try:
            yield vm
        finally:
            vm.close()
        return
    booted.begin()
    request.node.stash[_vm] = booted
    try:
        yield booted
    finally:
        booted.end()
        if not booted.lives:  # the next test has one that is booted anew
            del request.config.stash[_vms][key]
            booted.close()


def _booted(request: pytest.FixtureRequest) -> tuple[str, BootedVm]:
    """The machine that the marker wants, booted now where no test had it yet, and what it is known by."""
    from pyvmm.testing.vm import BootedVm

    wanted = _wanted(request.node)
    key, ready = repr(sorted(wanted.items())), wanted.pop("ready")
    vms = request.config.stash[_vms]
    if key not in vms:
        try:
            vms[key] = BootedVm(_machine_config(wanted), ready)
        except (UserError, TypeError) as error:
            raise pytest.UsageError(f"{request.node.nodeid}: {error}") from None
    return key, vms[key]


@pytest.fixture
def machine_factory() -> Iterator[Callable[..., Machine]]:
    """Makes a Machine of MachineConfig's words; it is closed when the test ends."""
    from pyvmm.machine.machine import Machine

    made: list[Machine] = []

    def make(**words: Any) -> Machine:
        made.append(Machine(_machine_config(words)))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    vm = item.stash.get(_vm, None)
    if call.when != "call" or not report.failed or vm is None:
        return
    report.sections += list(vm.last_words().items())
    artifacts: Path | None = item.config.getoption("--pyvmm-artifacts")
    if artifacts is not None:
        report.sections.append(("guest, artifacts", "\n".join(map(str, _leave(vm, artifacts, item)))))


def _leave(vm: GuestVm, directory: Path, item: pytest.Item) -> Iterator[Path]:
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in item.nodeid)
    directory.mkdir(parents=True, exist_ok=True)
    picture, saved = directory / f"{name}.png", directory / f"{name}.pyvmm"
    vm.screen.png(str(picture))
    yield picture
    if vm.lives:
        vm.machine.snapshot().save(saved)
        yield saved
