"""The Typer application, its exit codes, and commands that take groups of options."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_BROKEN = 1, 3, 4

EXIT_CODES: dict[int, str] = {
    0: "Done; of a gate: every rule that counts passes.",
    EXIT_FAIL: "Failed: at least one rule of the policy; of `stale`: the report is stale.",
    2: "Bad input: an option, a file, a setting, or the policy cannot be used.",
    EXIT_INCONCLUSIVE: "Inconclusive: a finding is an error, a recomputed cell differs, the audit"
    " ended early, or no rule fails and at least one is undecided.",
    EXIT_BROKEN: "The audit itself failed: a fault of the program, or of the machine.",
    130: "Interrupted by Ctrl-C; what was measured is written, as partial.",
    138: "Interrupted by SIGUSR1, as SLURM sends it before the time limit; likewise.",
    143: "Interrupted by SIGTERM, as batch systems send it; likewise.",
}
"""What every exit code means; `docs/exit-codes.md` is generated from here."""

SECTIONS = {
    "Measure": ("compress", "attack", "predict", "sweep", "run", "verify", "reproduce", "replay"),
    "Long runs": ("resume", "merge"),
    "Compare and judge": ("report", "compare", "gate", "baseline", "stale"),
    "Checkpoints": ("inspect", "convert", "attach", "export"),
}
"""The command list, by task."""

Function = TypeVar("Function", bound=Callable[..., Any])


class GroupedCommand(TyperCommand):
    """A command whose help lists its options by group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each group, in order of appearance; arguments first."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                argument = parameter.param_type_name == "argument"
                title = "Arguments" if argument else panel or "Options"
                sections.setdefault(title, []).append(record)
        _write_sections(formatter, sections)


class GroupedCommands(TyperGroup):
    """The list of commands, in the order and under the headings of `SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each kind of task, descriptions whole."""
        sections = {
            title: [(name, _summary(self.commands[name])) for name in names]
            for title, names in SECTIONS.items()
        }
        _write_sections(formatter, sections)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the list."""
        listed = [name for names in SECTIONS.values() for name in names]
        return listed + [name for name in self.commands if name not in listed]


def _summary(command: Any) -> str:
    """The first paragraph of a command's help."""
    return (command.help or "").partition("\n\n")[0].replace("\n", " ")


def _write_sections(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


app = typer.Typer(
    name="purify-audit",
    help="Does an adversarial purifier make a classifier robust, or does its randomness only hide"
    " the gradient?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=GroupedCommands,
)


def command(alias: str | None = None) -> Callable[[Function], Function]:
    """Add a function to the application, its option groups expanded into options.

    A parameter whose annotation is a dataclass is a group of options, titled by the first line of
    the dataclass's docstring; a group may hold groups. Other parameters are as in Typer.

    Args:
        alias: an old name that still works, hidden.
    """

    def register(function: Function) -> Function:
        flat = _expanded(function)
        app.command(cls=GroupedCommand)(flat)
        if alias is not None:
            app.command(alias, cls=GroupedCommand, hidden=True)(flat)
        return function

    return register


def _expanded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with one parameter for each option of its groups."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters = list[inspect.Parameter]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(cast(type, groups[parameter.name]))
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @functools.wraps(function)
    def flat(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = _collected(cast(type, kind), values)
        function(**values)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    vars(flat)["__signature__"] = inspect.Signature(keyword)
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def _options_of(group: type) -> list[inspect.Parameter]:
    """The parameters of a group and of the groups in it, each in its section of the help."""
    title = (group.__doc__ or "Options").partition("\n")[0].rstrip(".")
    hints = get_type_hints(group, include_extras=True)
    parameters = list[inspect.Parameter]()
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(hints[field.name]):
            parameters += _options_of(hints[field.name])
            continue
        kind, option = hints[field.name].__origin__, hints[field.name].__metadata__[0]
        shown = copy.copy(option)
        shown.rich_help_panel = option.rich_help_panel or title
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[kind, shown],
            )
        )
    return parameters


def _collected(group: type, values: dict[str, Any]) -> Any:
    """A group with its options taken out of `values`."""
    hints = get_type_hints(group)
    return group(
        **{
            field.name: _collected(hints[field.name], values)
            if dataclasses.is_dataclass(hints[field.name])
            else values.pop(field.name)
            for field in dataclasses.fields(group)
        }
    )
