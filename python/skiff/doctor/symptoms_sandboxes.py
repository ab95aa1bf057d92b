"""Symptoms of container engines, of sandboxes and of the agents that work in them."""

from __future__ import annotations

from skiff.doctor.symptom import Symptom

SYMPTOMS = (
    Symptom(
        "podman-state",
        r"invalid internal status|podman system migrate",
        "podman's state does not fit the running system (a reboot, an update, a lost pause"
        " process)",
        "start again: the server repairs Skiff's own store; for your own podman: `podman system"
        " migrate`",
    ),
    Symptom(
        "podman-database",
        r"opening database .*(?:invalid database|bolt_state)|database disk image is malformed"
        r"|file is not a database|database configuration mismatch",
        "the database of podman's containers is damaged",
        "start again: the server sets it aside; for your own podman: `podman system reset`",
    ),
    Symptom(
        "no-subordinate-ids",
        r"no sub[ug]id ranges found|[Nn]o range of 65536 ids|cannot find UID/GID for user"
        r"|insufficient UIDs or GIDs|newuidmap: .*(?:not allowed|failed)",
        "this user has no subordinate ids on the node, so rootless podman cannot map a container",
        "have `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` run there, or"
        ' use runtime.backend = "apptainer"',
    ),
    Symptom(
        "no-newuidmap",
        r"newuidmap.*(?:executable file )?not found|exec: \"newuidmap\"",
        "newuidmap is not installed on the node",
        'have the package uidmap (shadow-utils) installed, or use runtime.backend = "apptainer"',
    ),
    Symptom(
        "no-user-namespaces",
        r"cannot make a user namespace|user namespaces are not enabled"
        r"|cannot clone: (?:Operation not permitted|Invalid argument|No space left)"
        r"|[Ff]ailed to create user namespace",
        "the node lets ordinary users make no user namespaces",
        "have user.max_user_namespaces and kernel.unprivileged_userns_clone set there",
    ),
    Symptom(
        "no-podman",
        r"podman is not installed|exec: \"podman\"|podman: command not found",
        "podman is not installed on the node",
        'have it installed (make host), or use runtime.backend = "apptainer"',
    ),
    Symptom(
        "no-oci-runtime",
        r"no OCI runtime can start a container",
        "neither crun nor runc can start a container on the node",
        "install runc; the sentence in the log says what each of them misses",
    ),
    Symptom(
        "store-on-network",
        r"lies on \w+, not on a local disk"
        r"|'overlay' is not supported over \w+|kernel does not support overlay fs",
        "the sandboxes' store lies on a file system that cannot carry overlay mounts",
        "set SKIFF_PODMAN_ROOT or SKIFF_APPTAINER_ROOT to a folder on a disk of the node",
    ),
    Symptom(
        "rlimit",
        r"error setting rlimit",
        "podman raises a limit above the session's hard limit",
        "start the server from a session with higher limits (ulimit -Hn), or let the site raise"
        " them",
    ),
    Symptom(
        "no-apptainer",
        r"apptainer is not installed|apptainer: command not found",
        "Apptainer is not installed on the node",
        "make apptainer in the clone, or load the site's module; SKIFF_APPTAINER names a program",
    ),
    Symptom(
        "no-fuse",
        r"fuse: failed to open /dev/fuse|fuse: device not found",
        "a SIF cannot be mounted: /dev/fuse is not there or closed",
        "start by `skiff`, which unpacks the image then; by hand: `apptainer build --sandbox`",
    ),
    Symptom(
        "no-agent-server",
        r"openhands-agent-server.*(?:no such file|not found|No such file)"
        r"|/alive, server still starting|Action server at \S+ did not become ready",
        "the client waits for an agent server inside the container, and the image has none",
        "use Skiff's runtime server: it carries commands out from outside, in any image",
    ),
    Symptom(
        "sandbox-start-slow",
        r"was not ready within [\d.]+ s|failed to become ready within",
        "sandboxes start too slowly for runtime.start_seconds",
        "lower rollout.max_concurrent or runtime.concurrent_starts, pull images beforehand"
        " (skiff images pull), put the store on a local disk",
    ),
    Symptom(
        "image-missing",
        r"image (\S+) does not exist on the runtime server",
        "the image \\1 is not in the store of the runtime server",
        "skiff images pull PROFILE there before the run",
    ),
    Symptom(
        "dash",
        r"source: not found",
        "a script for bash was run by sh, which in that image is dash",
        "start it by `bash script`, or write `. file` for `source file`",
    ),
    Symptom(
        "r2e-tests",
        r"/r2e_tests'?: No such file or directory",
        "not every R2E image has /r2e_tests, and a script takes it for granted",
        "look before moving it, as skiff.tasks does: `[ ! -e /r2e_tests ] || mv ...`",
    ),
    Symptom(
        "local-workspace",
        r"workspace must be a LocalWorkspace",
        "a local conversation of the OpenHands SDK was given a remote workspace",
        "give it a scratch LocalWorkspace and tools with remote executors, as"
        " skiff.agents.openhands does; no adapter",
    ),
    Symptom(
        "unknown-agent",
        r"Unknown kind '(\w+)'",
        "a remote conversation sends its agent to a server that does not know the class \\1",
        "use a local conversation: an agent of your own cannot be sent",
    ),
    Symptom(
        "prompt-file",
        r"Prompt file (\S+) not found",
        "the OpenHands SDK looks for \\1 beside the module of an agent's class",
        "pass the system prompt as text, or override prompt_dir",
    ),
    Symptom(
        "frozen",
        r"Instance is frozen|\[type=frozen_instance",
        "an attribute of an agent of the OpenHands SDK is set, and these are frozen",
        "keep state outside the agent; no object.__setattr__",
    ),
    Symptom(
        "not-copyable",
        r"cannot pickle '|RecursionError: maximum recursion depth exceeded",
        "something with a lock or a client in it is copied or sent to another process",
        "keep plain data and a key in what is copied; look the client up where it is used",
    ),
    Symptom(
        "abstract",
        r"Can't instantiate abstract class (\w+)",
        "\\1 lacks a method of its base class: code for another version",
        "make install brings the locked versions; else write the method that the line names",
    ),
    Symptom(
        "context-full",
        r"CONTEXT_WINDOW_EXCEEDED|ContextWindowExceeded|maximum context length is \d+"
        r"|maximum model length of \d+",
        "a prompt is longer than the policy's context",
        "raise rollout.response_tokens and model.context_tokens, or lower agent.max_turns and"
        " agent.observation_chars",
    ),
)
