"""The `skiff` command: parses arguments and calls one function. `skiff COMMAND -h` tells more."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from skiff.config import Config, load_config
from skiff.config.load import dump_toml, parse_config, parse_override
from skiff.errors import ConfigError, InfraError, SkiffError

if TYPE_CHECKING:
    from skiff.images.store import Store

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# For commands that need sandboxes but no run; a profile given with --profile replaces it.
_SANDBOX_PROFILE: dict[str, dict[str, Any]] = {
    "model": {"path": "none", "context_tokens": 2},
    "tasks": {"train": [], "validation": []},
    "rollout": {
        "trajectories_per_prompt": 2,
        "prompts_per_step": 1,
        "prompt_tokens": 1,
        "response_tokens": 1,
        "max_concurrent": 4,
    },
    "agent": {"turn_tokens": 1},
    "train": {"steps": 1},
}

# Faults of a named file that are the user's and the machine's, not ours.
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENAMETOOLONG, errno.EIO, errno.ESTALE),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; a SkiffError is printed without a traceback."""
    parsed = _parser().parse_args(arguments)
    console = Console()
    # A shell starts its background jobs with SIGINT ignored; a command must end by it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(parsed.call(parsed, console) or 0)
    except SkiffError as error:
        return _refuse(error)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE or error.filename is None:
            raise
        return _refuse(InfraError(str(error.strerror), where=str(error.filename)))
    except KeyboardInterrupt:
        return 130


def _refuse(error: SkiffError) -> int:
    # Not broken into lines: what it names is copied from here.
    Console(stderr=True, soft_wrap=True, emoji=False).print(
        f"error: {error}", style="red", markup=False, highlight=False
    )
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skiff", description="Agentic RL of coding agents.")
    parser.add_argument("--version", action="version", version=version("skiff"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train on this machine")
    _profile_arguments(run)
    run.set_defaults(call=_run)

    resume = commands.add_parser("resume", help="go on with a run from its last checkpoint")
    resume.add_argument("run", type=Path, help="a run folder")
    resume.add_argument("--local", action="store_true", help="here, also what was submitted")
    resume.set_defaults(call=_resume)

    _slurm_commands(commands)

    config = commands.add_parser("config", help="look at a profile").add_subparsers(required=True)
    show = config.add_parser("show", help="the resolved profile")
    _profile_arguments(show)
    show.add_argument("--verl", action="store_true", help="print verl's overrides instead")
    show.set_defaults(call=_config_show)

    trajectory = commands.add_parser("show", help="read a trajectory")
    trajectory.add_argument("path", type=Path, help="a run folder or a trajectory file")
    trajectory.add_argument("--index", type=int, default=-1, help="which of a run (default: last)")
    trajectory.set_defaults(call=_show)

    report = commands.add_parser("report", help="write report.html of a run, also while it runs")
    report.add_argument("run", type=Path, help="a run folder")
    report.set_defaults(call=_report)

    _doctor_command(commands)
    _task_commands(commands.add_parser("tasks", help="build, list, show and check tasks"))
    images = commands.add_parser("images", help="sandbox images, and the SIFs that Skiff runs in")
    image_commands = images.add_subparsers(required=True, metavar="COMMAND")
    _image_commands(image_commands)
    _sif_commands(image_commands)
    kernels = commands.add_parser("kernels", help="packs of compiled kernels")
    _kernel_commands(kernels.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", type=Path, help="a TOML profile, e.g. profiles/demo.toml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace a value of the profile; may be given several times",
    )
    parser.add_argument(
        "--tasks", metavar="SPEC", help="train on these tasks; a fifth of them validates"
    )
    parser.add_argument("--agent", choices=("mini", "openhands"), help="agent.name")


def _slurm_commands(commands: _Commands) -> None:
    launch = commands.add_parser("launch", help="train on a Slurm cluster")
    _profile_arguments(launch)
    launch.add_argument("--dry-run", action="store_true", help="print the jobs, make nothing")
    launch.add_argument("--two-jobs", action="store_true", help="a job for each half")
    launch.add_argument("--local", action="store_true", help="no Slurm: as `skiff run`")
    which = launch.add_mutually_exclusive_group()
    which.add_argument("--runtime-only", action="store_true", help="only the runtime server")
    which.add_argument("--runtime-url", metavar="URL", help="only the trainer, for that server")
    launch.set_defaults(call=_launch)

    status = commands.add_parser("status", help="how a submitted run stands")
    status.add_argument("--json", action="store_true")
    status.add_argument("--watch", action="store_true", help="show it anew until the run has ended")
    status.set_defaults(call=_status)
    logs = commands.add_parser("logs", help="what a submitted run's processes say")
    logs.add_argument("-f", "--follow", action="store_true", help="until its jobs have ended")
    logs.set_defaults(call=_logs)
    cancel = commands.add_parser("cancel", help="end a submitted run in order")
    cancel.set_defaults(call=_cancel)
    for each in (status, logs, cancel):
        each.add_argument("run", type=Path, help="a run folder")
    listing = commands.add_parser("list", help="the runs below a folder, the newest first")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(call=_list)


def _doctor_command(commands: _Commands) -> None:
    doctor = commands.add_parser("doctor", help="what is wrong, before a run or after it")
    doctor.add_argument("place", type=Path, help="a profile (*.toml), or the folder of a run")
    doctor.add_argument("--json", action="store_true")
    before = doctor.add_argument_group("of a profile")
    before.add_argument("--on-nodes", action="store_true", help="look from a node of each half")
    before.add_argument("--key", type=Path, help="the public key that images must be signed with")
    before.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    doctor.set_defaults(call=_doctor)


def _task_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="the task specs, or the tasks of one")
    listing.add_argument("spec", nargs="?")
    listing.set_defaults(call=_tasks_list)

    show = commands.add_parser("show", help="everything about one task")
    show.add_argument("spec")
    show.add_argument("id")
    show.set_defaults(call=_tasks_show)

    build = commands.add_parser("build", help="make tasks and their image from a package")
    build.add_argument("shape", choices=("synthetic", "r2e-shaped", "swebench-shaped"))
    build.add_argument("package", help="NAME or NAME==VERSION on the package index")
    build.add_argument("--count", type=int, default=20, help="tasks wanted (synthetic)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--with", dest="extra", action="append", default=[], metavar="REQUIREMENT")
    build.set_defaults(call=_tasks_build)

    validate = commands.add_parser("validate", help="prove gold patch -> 1.0, empty patch -> 0.0")
    solve = commands.add_parser("solve", help="run the scripted solver through an agent")
    for each, call in ((validate, _tasks_validate), (solve, _tasks_solve)):
        each.add_argument("spec", nargs="+")
        each.add_argument("--limit", type=int, help="tasks of each spec")
        each.set_defaults(call=call)
    validate.add_argument("--skip-list", type=Path, help="write the ids of bad tasks to this file")
    solve.add_argument("--agent", choices=("mini", "openhands"), default="mini")
    for each in (build, validate, solve):
        each.add_argument("--profile", type=Path, help="take limits from this profile")


def _image_commands(commands: _Commands) -> None:
    pull = commands.add_parser("pull", help="fetch the images of tasks before they are needed")
    pull.add_argument("source", nargs="*", help="profiles (*.toml) and task specs")
    pull.add_argument("--image", action="append", default=[], metavar="NAME", help="and this one")
    pull.add_argument("--concurrency", type=_positive, default=4, help="pulls at a time")
    pull.add_argument("--plain-http", action="store_true", help="accept a registry without TLS")
    pull.set_defaults(call=_images_pull)

    listing = commands.add_parser("list", help="what the store holds, the last used first")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(call=_images_list)

    prune = commands.add_parser("prune", help="remove what was not used for longest")
    prune.add_argument(
        "--older-than", type=_duration, metavar="AGE", help="not used for 7d, 12h or 30m"
    )
    prune.add_argument(
        "--local",
        action="store_true",
        help="also what cannot be pulled again (localhost/...)",
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    prune.set_defaults(call=_images_prune)

    taking = commands.add_parser("import", help="take in an image from a file or folder")
    taking.add_argument(
        "path", type=Path, help="docker-archive, OCI layout, root file system or SIF file"
    )
    taking.add_argument("name")
    taking.set_defaults(call=_images_import)

    for each in (pull, prune):
        each.add_argument("--max-gib", type=float, help="what the store may hold")
    for each in (pull, listing, prune, taking):
        each.add_argument(
            "--sif", type=Path, metavar="FOLDER", help="the SIF files there, not podman's store"
        )


def _kernel_commands(commands: _Commands) -> None:
    listing = commands.add_parser("list", help="the packs of a folder, the newest first")
    listing.add_argument("folder", type=Path)
    listing.set_defaults(call=_kernels_list)

    explain = commands.add_parser("explain", help="why a start that finds one pack misses another")
    explain.add_argument("one", type=Path, help="the folder of a pack")
    explain.add_argument("other", type=Path)
    explain.set_defaults(call=_kernels_explain)

    build = commands.add_parser("build", help="make a pack, on a node with the GPU it is for")
    _profile_arguments(build)
    build.add_argument("--packs", type=Path, metavar="FOLDER", help="instead of kernels.packs")
    build.set_defaults(call=_kernels_build)

    verify = commands.add_parser("verify", help="check every file of packs by its sha256")
    verify.add_argument("pack", type=Path, nargs="+")
    verify.add_argument(
        "--strict",
        action="store_true",
        help="also start the engine and the trainer, on the packs' GPU, and prove that nothing"
        " is compiled",
    )
    verify.set_defaults(call=_kernels_verify)

    prune = commands.add_parser("prune", help="remove old packs")
    prune.add_argument("folder", type=Path)
    prune.add_argument(
        "--older-than", type=_duration, required=True, metavar="AGE", help="made 7d, 12h or 30m ago"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    prune.set_defaults(call=_kernels_prune)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _duration(text: str) -> float:
    """'7d', '12h' or '30m' in seconds."""
    units = {"m": 60, "h": 3600, "d": 86400}
    if text[-1:] not in units or not text[:-1].isdigit():
        raise argparse.ArgumentTypeError("give a number with m, h or d, such as 7d")
    return float(text[:-1]) * units[text[-1]]


def _load(parsed: argparse.Namespace) -> Config:
    overrides = dict(parse_override(text) for text in parsed.set)
    if parsed.agent:
        overrides["agent.name"] = parsed.agent
    if getattr(parsed, "two_jobs", False):
        overrides["slurm.mode"] = "two-jobs"
    if getattr(parsed, "runtime_url", None):
        overrides["runtime.url"] = parsed.runtime_url
    if parsed.tasks:
        overrides |= {"tasks.train": [parsed.tasks], "tasks.validation": []}
    return load_config(parsed.profile, overrides)


def _run(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.launch.run import run

    return run(_load(parsed), console)


def _resume(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.launch.run import resume

    return resume(parsed.run, console, local=parsed.local)


def _launch(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.launch.run import run
    from skiff.launch.submit import launch

    config = _load(parsed)
    if parsed.local:
        return run(config, console)
    launch(config, console, runtime_only=parsed.runtime_only, dry_run=parsed.dry_run)
    return 0


def _status(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.status import read_status, status, watch_status

    if parsed.watch:
        watch_status(parsed.run, console)
    elif parsed.json:
        print(read_status(parsed.run).as_json())
    else:
        print("\n".join(status(parsed.run)))


def _list(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.listing import listing_json, listing_table, runs_below

    rows = runs_below(parsed.folder)
    if parsed.json:
        print(listing_json(rows))
    else:
        console.print(listing_table(rows))


def _logs(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.status import show_logs

    show_logs(parsed.run, console, follow=parsed.follow)


def _cancel(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.submit import cancel

    cancel(parsed.run.absolute())


def _config_show(parsed: argparse.Namespace, console: Console) -> None:
    config = _load(parsed)
    if parsed.verl:
        from skiff.train.overrides import verl_overrides

        print("\n".join(verl_overrides(config, Path("RUN"), config.model.path)))
    else:
        print(dump_toml(config))


def _show(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.report import show_trajectory

    console.print(show_trajectory(parsed.path, parsed.index))


def _report(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.report import summarise, summary_table, write_report

    console.print(summary_table(summarise(parsed.run)))
    console.print(str(write_report(parsed.run)))


def _doctor(parsed: argparse.Namespace, console: Console) -> int:
    if parsed.place.is_dir():
        return _doctor_after(parsed, console)
    from skiff.doctor.before import as_json, check_profile, is_fine
    from skiff.doctor.show import checks_table

    config = load_config(parsed.place, dict(parse_override(text) for text in parsed.set))
    checks = check_profile(config, key=parsed.key, on_nodes=parsed.on_nodes)
    if parsed.json:
        print(as_json(checks))
    else:
        console.print(checks_table(checks))
    return 0 if is_fine(checks) else 1


def _doctor_after(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.doctor.after import diagnose
    from skiff.doctor.show import show_diagnosis

    found = diagnose(parsed.place)
    if parsed.json:
        print(found.as_json())
    else:
        show_diagnosis(found, console)
    return 1 if found.causes else 0


def _tasks_list(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.tasks.show import sources_table, tasks_table
    from skiff.tasks.sources import resolve

    if parsed.spec is None:
        console.print(sources_table())
    else:
        console.print(tasks_table(resolve(parsed.spec), title=parsed.spec))


def _tasks_show(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.tasks.show import task_page
    from skiff.tasks.sources import find, resolve

    console.print(task_page(find(resolve(parsed.spec), parsed.id)))


def _tasks_build(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.task_jobs import build

    path = build(
        parsed.shape,
        parsed.package,
        _sandbox_config(parsed.profile),
        count=parsed.count,
        seed=parsed.seed,
        extra=parsed.extra,
        console=console,
    )
    console.print(str(path))


def _tasks_validate(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.launch.task_jobs import validate
    from skiff.tasks.show import verdicts_table
    from skiff.tasks.validate import write_skip_list

    config = _sandbox_config(parsed.profile)
    verdicts = validate(parsed.spec, config, limit=parsed.limit, console=console)
    console.print(verdicts_table(verdicts))
    if parsed.skip_list:
        write_skip_list(parsed.skip_list, verdicts)
    return 0 if all(verdict.valid for verdict in verdicts) else 1


def _tasks_solve(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.launch.task_jobs import solve

    base = _sandbox_config(parsed.profile)
    agent = base.agent.model_copy(update={"name": parsed.agent})
    config = base.model_copy(update={"agent": agent})
    trajectories = solve(parsed.spec, config, limit=parsed.limit, console=console)
    for one in trajectories:
        reward = "masked" if one.reward is None else f"{one.reward:.1f}"
        console.print(f"{reward}  {one.task_id}  {one.stop.value} {one.stop_detail}", markup=False)
    solved = sum(one.reward == 1.0 for one in trajectories)
    console.print(f"{solved} of {len(trajectories)} solved")
    return 0 if solved == len(trajectories) else 1


def _sif_commands(commands: _Commands) -> None:
    build = commands.add_parser("build", help="build the SIFs that Skiff runs in")
    build.add_argument("image", nargs="*", help="default: base runtime trainer-cpu")
    build.add_argument("--output", type=Path, default=Path("sif"), help="folder of the SIFs")
    build.add_argument("--base", metavar="URI", help="docker://... in the place of Debian's own")
    build.add_argument("--python", type=Path, metavar="FOLDER", help="a tree of CPython 3.12")
    build.add_argument(
        "--flash-archs",
        default="",
        metavar="ARCHS",
        help="trainer: compile flash-attn for '90;100'",
    )
    build.add_argument("--debian", choices=("locked", "newest"), default="locked")
    build.add_argument("--lock-debian", action="store_true", help="write locks/debian.txt anew")
    build.add_argument("--force", action="store_true", help="also what has not changed")
    build.set_defaults(call=_images_build)

    verify = commands.add_parser("verify", help="signature, version, lock and own test of a SIF")
    inspect = commands.add_parser("inspect", help="what a SIF was made of")
    sbom = commands.add_parser("sbom", help="the bill of materials (CycloneDX) in a SIF")
    sign = commands.add_parser("sign", help="sign a SIF with the site's private key")
    for each, call in (
        (verify, _images_verify),
        (inspect, _images_inspect),
        (sbom, _images_sbom),
        (sign, _images_sign),
    ):
        each.add_argument("sif", type=Path)
        each.set_defaults(call=call)
    verify.add_argument("--key", type=Path, help="the public key it must be signed with")
    sign.add_argument("--key", type=Path, required=True, help="PEM, readable by its owner only")
    compare = commands.add_parser("compare", help="the files in which two SIFs differ")
    compare.add_argument("one", type=Path)
    compare.add_argument("other", type=Path)
    compare.set_defaults(call=_images_compare)
    keys = commands.add_parser("make-key", help="a pair of keys to sign SIFs with")
    keys.add_argument("folder", type=Path)
    keys.set_defaults(call=_images_make_key)


def _images_build(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.build import Options, build_images, lock_debian
    from skiff.images.definitions import DEFAULT

    options = Options(
        output=parsed.output.absolute(),
        base=parsed.base,
        python=parsed.python,
        flash_archs=parsed.flash_archs,
        debian="newest" if parsed.lock_debian else parsed.debian,
        force=parsed.force,
    )
    built = build_images(parsed.image or list(DEFAULT), options, console)
    if parsed.lock_debian:
        console.print(f"{lock_debian(built)}: written")


def _images_verify(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.verify import verify_image

    for sentence in verify_image(parsed.sif, key=parsed.key):
        console.print(f"ok  {sentence}", markup=False)


def _images_inspect(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.verify import inspect_image

    print(inspect_image(parsed.sif))


def _images_sbom(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.build import SBOM
    from skiff.sif import read_object

    print(read_object(parsed.sif, SBOM).decode())


def _images_sign(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.signature import sign

    sign(parsed.sif, parsed.key)
    console.print(f"{parsed.sif}: signed", markup=False)


def _images_compare(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.images.differences import differing_files

    found = differing_files(parsed.one, parsed.other)
    for line in found:
        console.print(line, markup=False)
    console.print(f"{len(found)} differences" if found else "the same")
    return 1 if found else 0


def _images_make_key(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.signature import make_key

    private, public = make_key(parsed.folder)
    console.print(f"private (keep it): {private}\npublic: {public}", markup=False)


def _images_pull(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.images.pull import Puller, pull_with_progress
    from skiff.launch.task_jobs import image_names

    puller = Puller(
        _image_store(parsed, verify_tls=not parsed.plain_http),
        concurrency=parsed.concurrency,
        max_bytes=_bytes(parsed.max_gib),
    )
    names = [*image_names(parsed.source), *parsed.image]
    if not names:
        raise ConfigError("names no image", remedy="give a profile, a task spec or --image NAME")
    outcomes = pull_with_progress(puller, names, console)
    return 3 if any(outcome.error for outcome in outcomes) else 0


def _images_list(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.show import images_json, images_table

    images, store = _image_store(parsed).images(), str(parsed.sif or "podman")
    if parsed.json:
        print(images_json(images, store=store))
    else:
        console.print(images_table(images, store=store))


def _images_prune(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.prune import prune

    if parsed.older_than is None and parsed.max_gib is None:
        raise ConfigError("says not what may go", remedy="give --older-than, --max-gib or both")
    removed = prune(
        _image_store(parsed),
        max_bytes=_bytes(parsed.max_gib),
        older_than=parsed.older_than,
        local=parsed.local,
        dry_run=parsed.dry_run,
    )
    verb = "would be removed" if parsed.dry_run else "removed"
    for image in removed:
        console.print(f"{verb}: {', '.join(image.names) or image.id}", markup=False)
    console.print(f"{len(removed)} images {verb}")


def _images_import(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.images.archive import detect

    archive = detect(parsed.path)
    _image_store(parsed).add(archive, parsed.name)
    console.print(f"{parsed.name}: imported ({archive.kind.value})", markup=False)


def _kernels_list(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.kernels.packs import packs_table, read_packs

    console.print(packs_table(read_packs(parsed.folder)))


def _kernels_explain(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.kernels.packs import explain, read_pack

    found = explain(read_pack(parsed.one), read_pack(parsed.other))
    for one in found:
        console.print(str(one), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(found)} differences" if found else "the same keys")
    return 1 if found else 0


def _kernels_build(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.launch.kernels import build

    config = _load(parsed)
    if parsed.packs is not None:
        kernels = config.kernels.model_copy(update={"packs": parsed.packs})
        config = config.model_copy(update={"kernels": kernels})
    console.print(f"pack: {build(config, console)}", markup=False, soft_wrap=True)


def _kernels_verify(parsed: argparse.Namespace, console: Console) -> int:
    from skiff.kernels.packs import read_pack, verify

    wrong = {folder: verify(read_pack(folder)) for folder in parsed.pack}
    for folder, sentences in wrong.items():
        for sentence in sentences or ["whole"]:
            console.print(f"{folder}: {sentence}", markup=False, highlight=False, soft_wrap=True)
        if parsed.strict and not sentences:
            from skiff.launch.kernels import prove

            prove(folder, console)
            console.print(f"{folder}: nothing was compiled", markup=False, soft_wrap=True)
    return 1 if any(wrong.values()) else 0


def _kernels_prune(parsed: argparse.Namespace, console: Console) -> None:
    from skiff.kernels.packs import prune, read_packs

    packs = read_packs(parsed.folder)
    removed = prune(packs, older_than=parsed.older_than, dry_run=parsed.dry_run)
    verb = "would be removed" if parsed.dry_run else "removed"
    for pack in removed:
        console.print(f"{verb}: {pack.path.name}", markup=False)
    console.print(f"{len(removed)} packs {verb}")


def _image_store(parsed: argparse.Namespace, *, verify_tls: bool = True) -> Store:
    from skiff.images.podman_store import PodmanStore
    from skiff.images.sif_store import SifStore

    return SifStore(parsed.sif) if parsed.sif else PodmanStore(verify_tls=verify_tls)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * (1 << 30))


def _sandbox_config(profile: Path | None) -> Config:
    return load_config(profile) if profile else parse_config(_SANDBOX_PROFILE)


if __name__ == "__main__":
    sys.exit(main())
