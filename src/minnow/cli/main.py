"""Find the command, run it, and turn what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from minnow.errors import UserError


@dataclass(frozen=True)
class Command:
    """Where a command's function is and what it does in one line.

    Attributes:
        function: ``module:function``; imported only when the command is asked for, so that ``minnow --help`` is quick.
            Its signature becomes the flags (tyro), its docstring the help; it returns an exit code or None for 0.
    """

    function: str
    summary: str


# Every command registers here: its words (one, or two for a group) and its place in minnow/cli/<group>.py (long ones
# have a file of their own, <group>_<word>.py).
COMMANDS: dict[str, Command] = {
    "run": Command("minnow.cli.run:run", "run a recipe: train, heal, export and report, resumable"),
    "chat": Command("minnow.cli.chat:chat", "talk to a model, with search over its encyclopaedia"),
    "agent": Command("minnow.cli.agent:agent", "ask a model that searches the web or a folder, and uses tools"),
    "index": Command("minnow.cli.agent:index", "make a folder of files searchable for a model"),
    "mcp": Command("minnow.cli.agent:mcp", "offer the tools to other programs (Model Context Protocol)"),
    "serve": Command("minnow.cli.serve:serve", "an OpenAI-compatible server with a loop guard"),
    "route explain": Command("minnow.cli.route:explain", "say whether a request would go to the cloud, and why"),
    "route fit": Command("minnow.cli.route:fit", "fit a probe that tells good local answers from bad ones"),
    "data tokenize": Command("minnow.cli.data:tokenize", "tokenise text once into shards that training reads"),
    "data inspect": Command("minnow.cli.data:inspect", "say what a tokenised corpus holds, and check it"),
    "data clean": Command("minnow.cli.data:clean", "leave copies and evaluation sets out of a text"),
    "data generate": Command("minnow.cli.data_generate:generate", "make data out of a model's answers that are right"),
    "data grade": Command("minnow.cli.data_grade:grade", "say how hard worked examples are, by a ladder of models"),
    "inspect": Command("minnow.cli.inspect:inspect", "show where a model's parameters sit and what they cost"),
    "eval": Command("minnow.cli.eval:evaluate", "score a model's answers on tasks, built in or your own"),
    "loops measure": Command(
        "minnow.cli.loops_measure:measure", "measure how often a model's answers end in a doom loop"
    ),
    "loops pairs": Command("minnow.cli.loops_pairs:pairs", "make preference pairs from a model's own answers"),
    "loops compare": Command("minnow.cli.loops_compare:compare", "compare two measurements over the same prompts"),
    "loops detect": Command("minnow.cli.loops:detect", "find loops in texts, by Minnow's verdict or published rules"),
    "sft": Command("minnow.cli.align:sft", "fine-tune on conversations and tasks, after a look at the data"),
    "dpo": Command("minnow.cli.align:dpo", "preference training on pairs, behind a gate of loop rate and score"),
    "grpo": Command("minnow.cli.align:grpo", "RL with verifiable rewards and a loop penalty, behind the same gate"),
    "quantise": Command("minnow.cli.align:quantise", "fine-tune a checkpoint so that a 4-bit file loses less"),
    "merge": Command("minnow.cli.merge:merge", "merge checkpoints of one family, larger than memory if need be"),
    "scaling fit": Command("minnow.cli.scaling:fit", "fit a scaling law to training runs"),
    "scaling plan": Command("minnow.cli.scaling_plan:plan", "choose a model's size and training tokens"),
    "scaling sweep": Command("minnow.cli.scaling_sweep:sweep", "train a ladder of small models for a fit"),
    "scaling knowledge": Command("minnow.cli.scaling_knowledge:knowledge", "say how many facts fit into a model"),
    "plan-cluster": Command(
        "minnow.cli.plan_cluster:plan", "say what a training takes on many GPUs, and the best mesh"
    ),
    "export": Command("minnow.cli.export:export", "write a model as GGUF files, and check them"),
    "design": Command("minnow.cli.design:design", "find the best architecture for a device's budget by measuring"),
    "profile": Command("minnow.cli.profile:profile", "measure speed and memory of models, here or on a phone"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input or a full disk, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "stopped", getattr(error, "exit_code", 130))
    except Exception as error:
        if not _is_full_disk(error):
            raise
        return _fail(
            f"the disk is full ({error}); free some space, then run the same command again "
            "(what was finished before is untouched)",
            2,
        )


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"minnow {version('minnow')}\n")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return _call(name, words[length:])
    members = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if members and (len(words) == 1 or words[1] in ("-h", "--help")):
        sys.stdout.write(_help(members))
        return 0 if len(words) > 1 else 2
    from minnow.recipe.mapping import nearest

    asked = " ".join(words[:2]) if members else words[0]
    raise UserError(f"there is no command 'minnow {asked}'; {nearest(asked, members or COMMANDS)}")


def _call(name: str, arguments: list[str]) -> int:
    import tyro

    module, _, function = COMMANDS[name].function.partition(":")
    command = getattr(importlib.import_module(module), function)
    code = tyro.cli(command, prog=f"minnow {name}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    return int(code or 0)


def _help(names: Sequence[str] = ()) -> str:
    shown = list(names or COMMANDS)
    width = max(map(len, shown)) + 2
    lines = ["usage: minnow COMMAND [--help] ...", "", "Small language models for the edge, from recipe to report.", ""]
    lines += [f"  {name:<{width}}{COMMANDS[name].summary}" for name in shown]
    return "\n".join([*lines, "", "minnow COMMAND --help tells a command's flags."]) + "\n"


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"minnow: {sentence}\n")
    return code


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether ``error`` or what caused it is a full disk; safetensors reports that in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
