"""The `evergreen` command.

Exit codes: see `EXIT_CODES`. Errors are one line on stderr. Everything heavy is imported inside the command that needs
it: `evergreen --help` must not take seconds.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, ParamSpec
from urllib.parse import urlsplit

import typer

from service.command import printing as show
from service.command.layout import terminal_width
from service.sample import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from evergreen_client import Client

    from service.command.versions import Versions
    from service.settings import DataSettings, Settings

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
CRASHED: Final = 4
NO_ANSWER: Final = 5
INTERRUPTED: Final = 130

EXIT_CODES: Final = """Exit codes:

\b
0    it worked; with --wait: promoted, rolled back, switched, paused, erased as asked
1    it failed: another error of the service, of a file, of the store
2    it was asked wrongly: an option, a setting
3    the champion stays: a gate refused the candidate, or there was nothing to do
4    the run crashed, or was interrupted, before there was a verdict
5    nobody answers, or the run is not over in time (it goes on)
130  stopped by Ctrl-C"""
"""The same for every command."""
STAYS: Final = ("kept", "refused", "no_action")
"""Outcomes of runs that came to an end and changed nothing."""

LINES: Final = 5
"""Newest lines of the runs that `status` shows."""
CHANGE_WAIT_S: Final = 120.0
"""How long `rollback` and `promote` wait: loading and warming up a version takes seconds."""
TRAIN_WAIT_S: Final = 7200.0
"""How long `retrain`, `push` and `erase` wait at most."""

P = ParamSpec("P")

app = typer.Typer(
    name="evergreen",
    help="A prediction service that keeps its own model fresh.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: loading rich for it took most of the time that `evergreen --help` takes
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file (default: evergreen.toml here)", show_default=False)
]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url", help="Address of the service (default: settings serve.host and serve.port)", show_default=False
    ),
]
TokenOption = Annotated[
    str, typer.Option("--token", help="Management token (default: settings, then var/token)", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines")]
WhyOption = Annotated[str, typer.Option("--why", help="Reason, kept in the run", show_default=False)]
WaitOption = Annotated[bool, typer.Option("--wait", help="Until the run is over; its outcome is the exit code")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds that --wait waits at most", min=0)]


class _Shown:
    traceback = False


class _Umask:
    of_the_user: int | None = None
    """The umask of the user, before this command made its own files private."""


def main() -> None:
    """Entry point of the console command."""
    _Umask.of_the_user = os.umask(0o077)  # the record, models and exports hold data
    app()


def command(name: str, group: typer.Typer = app) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a command whose exceptions become one line and an exit code."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        found = reported(function)
        group.command(name)(found)
        return found

    return register


def reported(function: Callable[P, None]) -> Callable[P, None]:
    """The function, whose exceptions become one line and an exit code."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _fail("stopped", INTERRUPTED)
        except BrokenPipeError:  # `evergreen runs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except Exception as error:
            if _Shown.traceback:
                raise
            _report(error)

    return called


def _report(error: Exception) -> NoReturn:
    """Print the error in one line on stderr and exit; an error that is not ours is named with its type."""
    from evergreen_client import Denied, EvergreenClientError, NotFinished, Unreachable

    from monitoring.errors import EvergreenError
    from service.settings import SettingsError

    if isinstance(error, SettingsError):
        _fail(str(error), USAGE)
    if isinstance(error, Denied):
        _fail(f"{error}; give the management token: --token or EVERGREEN_SECURITY__TOKEN", FAILED)
    if isinstance(error, EvergreenError | EvergreenClientError):
        _fail(str(error), NO_ANSWER if isinstance(error, NotFinished | Unreachable) else FAILED)
    words = " ".join(str(error).split()) or "no words"
    _fail(f"{type(error).__name__}: {words} (`evergreen --debug …` shows where)", FAILED)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"evergreen: {line}", err=True)
    raise typer.Exit(code)


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        from service.process import DISTRIBUTION
        from service.revision import revision, short

        built = f" ({short(made)})" if (made := revision()) else ""
        typer.echo(f"evergreen {importlib.metadata.version(DISTRIBUTION)}{built}")
        raise typer.Exit(OK)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Version of Evergreen, with its revision", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks instead of one-line errors")] = False,
) -> None:
    """A prediction service that keeps its own model fresh."""
    _Shown.traceback = debug


# What runs here


@command("example")
def example(
    to: Annotated[Path, typer.Argument(help="File to write")] = Path("flights.csv"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file")] = False,
) -> None:
    """Write the data set that ships, as CSV: a year of flights from New York, and which of them came late.

    It stands in for a file of your own: real rows in the order of time, with missing values, and a label each.
    """
    from service.command.example import ABOUT, TARGET, TIME, write_example

    if _Umask.of_the_user is not None:
        os.umask(_Umask.of_the_user)  # a file of the user's own
    rows = write_example(to, force=force)
    typer.echo(f"wrote {to}: {rows:,} {ABOUT}")
    typer.echo(f"next: evergreen init --data {to} --target {TARGET} --time {TIME}")


@command("init")
def init(
    data: Annotated[
        str, typer.Option(help="Parquet or CSV file, folder, glob or URL; or a database's URL and a query, in quotes")
    ],
    target: Annotated[str, typer.Option(help="Column to predict")],
    time_column: Annotated[str, typer.Option("--time", help="Column that orders the rows")] = "",
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Rows in random order, when there is no column that orders them")
    ] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="Columns that are no features, COL,COL")] = None,
    task: Annotated[
        Literal["auto", "binary", "multiclass", "regression"], typer.Option(help="Kind of prediction")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="File to write")] = Path("evergreen.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented evergreen.toml for a data file, and say what was decided of each column.

    Constants, ids, free text, duplicates, copies of the target, what tells it too well and categories of too many
    values are left out; each stands in the file on a line of its own, and is a feature again without it.
    """
    from dataclasses import asdict

    from service.command.init import init as write

    if _Umask.of_the_user is not None:
        os.umask(_Umask.of_the_user)  # a file of the user's own, often for a repository
    with show.open_console(stderr=True).status(f"looking at {data}"):
        done = write(
            data,
            target,
            time=time_column,
            shuffle=shuffle,
            ignore=_columns(ignore),
            task=task,
            out=out,
            force=force,
        )
    if as_json:
        show.print_json(
            {
                "path": str(done.path),
                "rows": done.rows,
                "rows_without_label": done.without_label,
                "rows_without_time": done.without_time,
                "task": done.task,
                "features": done.kinds,
                "columns": [asdict(each) for each in done.columns],
                "warnings": done.warnings,
            }
        )
        return
    show.print_init(done, target)


@command("train")
def train(
    first: Annotated[
        str, typer.Option(help='Only the first part of the source: "20%" or rows', show_default=False)
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Train even when there is a champion already")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the first version from the configured data."""
    from service.command import first_version as bootstrap
    from service.command.trained_on import refuse_the_sample_beside_data, trained_on

    settings = _settings(config, {"EVERGREEN_DATA__FIRST": first} if first else {})
    refuse_the_sample_beside_data(settings)
    data = trained_on(settings)
    if not as_json:
        typer.echo(f"training on {data}")
    done = bootstrap.train(settings, force=force)
    if as_json:
        reasons = list(done.reasons)
        told = {"version": done.version, "promoted": done.promoted, "reasons": reasons, "data": data}
        show.print_json(told | ({"next": done.next} if done.next else {}))
    else:
        word = "in service" if done.promoted else "not promoted"
        typer.echo(f"version {done.version}: {word}")
        for reason in done.reasons:
            typer.echo(f"  {reason}")
        if done.next:
            typer.echo(f"next: {done.next}")
    raise typer.Exit(OK if done.promoted else REFUSED)


@command("serve")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on (setting serve.host)", show_default=False)] = "",
    port: Annotated[int | None, typer.Option(help="TCP port (setting serve.port)", show_default=False)] = None,
    workers: Annotated[
        int | None, typer.Option(help="API processes (setting serve.workers)", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Serve predictions and keep the model fresh, until stopped."""
    from service.command import serve as server
    from service.command.trained_on import refuse_the_sample_beside_data
    from service.settings import ROLE_VARIABLE

    given = {
        "EVERGREEN_SERVE__HOST": host,
        "EVERGREEN_SERVE__PORT": "" if port is None else str(port),
        "EVERGREEN_SERVE__WORKERS": "" if workers is None else str(workers),
    }
    settings = _settings(config, {name: value for name, value in given.items() if value})
    if not settings.live_file.exists():  # else there is a version already, from wherever it came
        refuse_the_sample_beside_data(settings)
    raise typer.Exit(server.run(settings, role=os.environ.get(ROLE_VARIABLE, "serve")))


@command("demo")
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running and say where")] = False,
) -> None:
    """The whole loop on the sample stream, in three minutes.

    Drift is noticed, a candidate trained, judged and swapped in, and quality recovers.
    """
    from service.command import demo as whole_loop

    raise typer.Exit(whole_loop.run(keep=keep))


# What a running service says


@command("status")
def status(
    url: UrlOption = "", token: TokenOption = "", config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """How the deployment stands, in a sentence; then workers, record, the last check and runs."""
    with _client(config, url, token) as client:
        found = client.status()
        lines = [] if as_json else client.runs(LINES, folded=True)
    if as_json:
        show.print_json(found)
        return
    show.print_status(found, lines)


replicas = typer.Typer()
app.add_typer(replicas, name="replicas")


@replicas.callback(invoke_without_command=True)
@reported
def list_replicas(
    context: typer.Context,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The replicas on all hosts: what they serve, what waits there, who leads; or say that one is gone."""
    if context.invoked_subcommand is not None:
        return
    with _client(config, url, token) as client:
        found = client.replicas()
    if as_json:
        show.print_json(found)
    else:
        show.print_replicas(found)


@command("gone", replicas)
def replica_gone(
    home: Annotated[str, typer.Argument(help="Id of its home, or the name of its host")],
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it counts as gone")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that a home does not come back, so that erasures stop waiting for it; its own token is revoked."""
    with _client(config, url, token) as client:
        _asked(client, client.gone(home, why), wait, as_json, good=("gone",), timeout_s=CHANGE_WAIT_S)


versions = typer.Typer()
app.add_typer(versions, name="models")


@versions.callback(invoke_without_command=True)
@reported
def models(
    context: typer.Context,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every version of the model, newest first; the commands below say more of one, or of two."""
    if context.invoked_subcommand:
        return
    with _client(config, url, token) as client:
        found = client.models()
    if as_json:
        show.print_json(found)
        return
    show.print_models(found)


RowsOption = Annotated[int, typer.Option("--rows", help="Rows that are predicted at most", min=1, max=100_000)]
HereUrlOption = Annotated[
    str, typer.Option("--url", help="Ask a running service (default: the store of this host)", show_default=False)
]


def _told(found: Any, plain: Any, lines: Callable[[Any, int | None], Any], as_json: bool) -> None:
    """What was found for people, by `lines`, or `plain` for machines."""
    if as_json:
        show.print_json(plain)
    else:
        show.show(lines(found, terminal_width()))


@command("show", versions)
def models_show(
    version: Annotated[int, typer.Argument(help="Version to show", min=1)],
    url: HereUrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One version: what it was made from, by which run, why, how good it is, and what it answered."""
    from service.command.version_lines import version_lines

    with _versions(config, url, token) as known:
        found = known.version(version)
    _told(found, found, version_lines, as_json)


@command("compare", versions)
def models_compare(
    a: Annotated[int, typer.Argument(help="One version", min=1)],
    b: Annotated[int, typer.Argument(help="The other", min=1)],
    rows: RowsOption = 2000,
    url: HereUrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Two versions side by side: data, parameters, gates, slices, importance, and predictions on the same rows.

    The rows are the newest of the record; of those that are new to both, the labels say which is better.
    """
    from service.command.version_lines import comparison_lines

    with _versions(config, url, token) as known, show.open_console(stderr=True).status("asking both the same rows"):
        found = known.compare(a, b, rows)
    _told(found, found, comparison_lines, as_json)


@command("reproduce", versions)
def models_reproduce(
    version: Annotated[int, typer.Argument(help="Version to make again", min=1)],
    rows: RowsOption = 2000,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a version again from its manifest and snapshot, and compare its predictions bit for bit.

    Nothing is kept of it. What it answered, through whichever adaptation, is made again, too. The exit code is 0 when
    everything is identical, else 1.
    """
    import msgspec

    from service.command.version_lines import reproduction_lines
    from service.command.versions import versions_of

    console = show.open_console(stderr=True)
    with versions_of(_settings(config)) as known, console.status(f"training version {version} again"):
        found = known.reproduce(version, rows)
    _told(found, {**msgspec.to_builtins(found), "same": found.same}, reproduction_lines, as_json)
    raise typer.Exit(OK if found.same else FAILED)


@command("lineage", versions)
def models_lineage(
    answer: Annotated[str, typer.Option("--answer", help="Prediction id", show_default=False)] = "",
    run: Annotated[int | None, typer.Option("--run", help="Number of a run", min=1, show_default=False)] = None,
    snapshot: Annotated[str, typer.Option("--snapshot", help="Digest of data, or its start", show_default=False)] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which version an answer, a run or a snapshot of data leads to; `models show V` is the way back."""
    import msgspec

    from service.command.version_lines import lineage_lines
    from service.command.versions import versions_of

    if [bool(answer), run is not None, bool(snapshot)].count(True) != 1:
        raise typer.BadParameter("give one of --answer ID, --run N and --snapshot DIGEST")
    with versions_of(_settings(config)) as known:
        found = known.lineage(answer=answer, run=run, snapshot=snapshot)
    _told(found, msgspec.to_builtins(found), lineage_lines, as_json)


@command("tag", versions)
def models_tag(
    version: Annotated[int, typer.Argument(help="Version to tag", min=1)],
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to put on", show_default=False)] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Tag to take off; may be repeated", show_default=False)
    ] = None,
    why: WhyOption = "",
    url: HereUrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put tags on a version, or take them off; who did it stands in a run."""
    with _versions(config, url, token) as known:
        made = known.tag(version, tags or (), remove or (), why)
        now = known.version(version)["tags"]
    if as_json:
        show.print_json({"run": made, "version": version, "tags": now})
    else:
        typer.echo(f"version {version} is tagged {', '.join(now)}" if now else f"version {version} has no tag")


@command("note", versions)
def models_note(
    version: Annotated[int, typer.Argument(help="Version to say something of", min=1)],
    text: Annotated[str, typer.Argument(help="What is to be kept")],
    url: HereUrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a note on a version, with who said it and when; `models show` has it."""
    with _versions(config, url, token) as known:
        made = known.note(version, text)
    if as_json:
        show.print_json({"run": made, "version": version})
    else:
        typer.echo(f"noted of version {version}, in run {made}")


@command("export", versions)
def models_export(
    version: Annotated[int, typer.Argument(help="Version to give back", min=1)],
    to: Annotated[Path, typer.Option("--to", help="Folder for its files, made when absent", show_default=False)],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version's pipeline (skops), its ONNX twin and its schema; no server needs to run."""
    from service.command.export_model import export_model

    done = export_model(_settings(config), version, to)
    if as_json:
        show.print_json(done._asdict())
        return
    typer.echo(f"version {done.version}: {', '.join(done.files)} in {done.to}")
    if done.no_twin:
        typer.echo(f"it has no ONNX twin: {done.no_twin}")


@command("runs")
def runs(
    run: Annotated[int | None, typer.Argument(help="One run, with its full record of why", show_default=False)] = None,
    kind: Annotated[
        str, typer.Option(help="check, retrain, push, promote, rollback, bootstrap, …", show_default=False)
    ] = "",
    trigger: Annotated[
        str, typer.Option(help="manual, quality, growth, schedule, drift or start", show_default=False)
    ] = "",
    since: Annotated[
        str, typer.Option(help='Not older than "2h", "3d", 10:05, 2026-11-23, an ISO time', show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(help="Newest lines to show (with --json: runs)", min=1, max=1000)] = 20,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every decision, "no" included, and why: a line each.

    Checks in a row that said "no" in the same way are one line. Into a pipe it is columns with tabs between them, each
    cell whole; --json has every run by itself.
    """
    asked: dict[str, Any] = {"kind": kind, "trigger": trigger, "since": _since(since)}
    with _client(config, url, token) as client:
        found: Any = client.run(run) if run is not None else client.runs(limit, folded=not as_json, **asked)
    if as_json:
        show.print_json(found)
    elif run is None:
        show.print_runs(found)
    else:
        show.print_run(found)


@command("drift")
def drift(
    url: UrlOption = "", token: TokenOption = "", config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """The newest check: what moved, how good the model is."""
    with _client(config, url, token) as client:
        checks = client.drift()
    if as_json:
        show.print_json(checks)
        return
    show.print_drift(checks)


@command("open")
def open_page(
    print_only: Annotated[bool, typer.Option("--print", help="Only print its address")] = False,
    url: UrlOption = "",
    config: ConfigOption = None,
) -> None:
    """Open the page of a running service in the browser; without a browser print its address."""
    from service.command.browser import open_in_browser

    settings = _settings(config)
    with _client(config, url, "") as client:
        client.readiness()  # raises when nobody answers
        address = f"{client.url}/"
    if print_only or not open_in_browser(address):
        typer.echo(address)
    else:
        typer.echo(f"opened {address}", err=True)
    typer.echo(f"sign in with a token of scope `read`; this deployment's own is in {settings.token_file}", err=True)


# What a running service is told


@command("retrain")
def retrain(
    why: WhyOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = TRAIN_WAIT_S,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a candidate now; the gates decide.

    With --wait the exit code is 0 when it was promoted, 3 when the champion stays, 4 when the run crashed, 5 when it is
    not over in time.
    """
    with _client(config, url, token) as client:
        _asked(client, client.retrain(why), wait, as_json, good=("promoted",), timeout_s=timeout)


@command("push")
def push(
    file: Annotated[Path, typer.Argument(help="A scikit-learn pipeline saved with skops.io.dump, or an ONNX file")],
    trained_until: Annotated[
        str, typer.Option(help="Time of the newest row it was fitted to (ISO 8601): later rows judge it")
    ] = "",
    why: WhyOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = TRAIN_WAIT_S,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in a model of your own; the gates decide.

    With --wait the exit code is 0 when it was promoted, 3 when the champion stays, 4 when the run crashed, 5 when it is
    not over in time.
    """
    try:
        model = file.read_bytes()
    except OSError as error:
        _fail(f"cannot read {file}: {error.strerror}", USAGE)
    if model[:1] == b"\x80" or file.suffix in (".pkl", ".pickle", ".joblib"):
        _fail(f"{file} is a pickle, which could run any code: save the model with skops.io.dump, or as ONNX", FAILED)
    with _client(config, url, token) as client:
        _asked(client, client.push(model, why, trained_until), wait, as_json, good=("promoted",), timeout_s=timeout)


@command("promote")
def promote(
    version: Annotated[int, typer.Argument(help="Version to put in service", min=1)],
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is in service")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a version in service, past the gates."""
    with _client(config, url, token) as client:
        _asked(client, client.promote(version, why), wait, as_json, good=("promoted",), timeout_s=CHANGE_WAIT_S)


@command("rollback")
def rollback(
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is in service")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the previous version in service again."""
    good = ("rolled_back", "promoted")
    with _client(config, url, token) as client:
        _asked(client, client.rollback(why), wait, as_json, good=good, timeout_s=CHANGE_WAIT_S)


@command("pause")
def pause(
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the loop is paused")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pause the loop: no check, no training, no promotion; predictions and labels go on."""
    with _client(config, url, token) as client:
        _asked(client, client.pause(why), wait, as_json, good=("paused",), timeout_s=CHANGE_WAIT_S)


@command("resume")
def resume(
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the loop works again")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused loop work again."""
    with _client(config, url, token) as client:
        _asked(client, client.resume(why), wait, as_json, good=("resumed",), timeout_s=CHANGE_WAIT_S)


@command("adaptation")
def adaptation(
    state: Annotated[Literal["show", "off", "on"], typer.Argument(help="Show it, or switch it")] = "show",
    limit: Annotated[int, typer.Option(help="Newest of them to show", min=1, max=1000)] = 20,
    why: WhyOption = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is switched")] = True,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """How the champion's output is adapted between trainings; switch it off, or on."""
    with _client(config, url, token) as client:
        if state != "show":
            run = client.switch_adaptation(state, why)
            return _asked(client, run, wait, as_json, good=(state,), timeout_s=CHANGE_WAIT_S)
        found = client.adaptation(limit)
    if as_json:
        show.print_json(found)
    else:
        show.print_adaptation(found)


@command("erase")
def erase(
    ids: Annotated[list[str] | None, typer.Option("--id", help="Prediction id; may be repeated")] = None,
    feature: Annotated[str, typer.Option(help="Feature that names the subject", show_default=False)] = "",
    value: Annotated[str, typer.Option(help="Its value", show_default=False)] = "",
    why: WhyOption = "",
    wait: WaitOption = False,
    url: UrlOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget rows everywhere, by prediction id or by a feature's value."""
    if bool(ids) == bool(feature) or bool(feature) != bool(value):
        raise typer.BadParameter("give --id ID (repeatable), or --feature NAME with --value VALUE")
    with _client(config, url, token) as client:
        run = client.erase(ids or (), feature=feature, value=value, why=why)
        _asked(client, run, wait, as_json, good=("erased",))


@command("export")
def export(
    to: Annotated[
        str, typer.Option("--to", help="Folder or fsspec URL (default: setting export.to)", show_default=False)
    ] = "",
    since: Annotated[
        str, typer.Option(help="First moment: 2026-11-23, or seconds since 1970", show_default=False)
    ] = "",
    until: Annotated[str, typer.Option(help="Moment to stop before", show_default=False)] = "",
    version: Annotated[int | None, typer.Option(help="Only what this version answered", show_default=False)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the record with its labels as Parquet, one folder for each day."""
    from service.command.export import export_record

    settings = _settings(config)
    if not (to or settings.exports_url):
        raise typer.BadParameter("give a folder or URL, or set [export] to", param_hint="--to")
    console = show.open_console(stderr=True)
    with console.status("exporting") as spinner:
        done = export_record(
            settings,
            to or settings.exports_url,
            since=since,
            until=until,
            version=version,
            on_rows=lambda rows: spinner.update(f"exporting: {rows:,} rows"),
        )
    if as_json:
        show.print_json(done._asdict())
    else:
        typer.echo(f"{done.rows:,} rows ({done.labelled:,} labelled) of {len(done.files)} days in {done.to}")
        if done.skipped:
            typer.echo(f"{done.skipped:,} rows of other versions do not fit the schema of version {done.schema_of}")


@command("drain")
def drain(
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds after which it gives up", min=0)] = 300.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store what waits in the spool of a server that is gone, as on the volume of a replica that was taken away.

    A store that is away is waited for. Rows that were stored before are not stored again, so it may be stopped and
    repeated at any time.
    """
    from service.command.drain import drain as store_the_rest

    drained = store_the_rest(_settings(config), timeout, say=lambda line: typer.echo(line, err=True))
    if as_json:
        show.print_json(drained._asdict())
    else:
        typer.echo(drained.sentence)
    raise typer.Exit(FAILED if drained.rows_left else OK)


# Rows to answer


@command("predict")
def predict(
    file: Annotated[str, typer.Argument(help="CSV or Parquet file, folder, glob or URL")],
    out: Annotated[
        Path | None,
        typer.Option(help="File for the answers, .csv or .parquet (default: beside FILE)", show_default=False),
    ] = None,
    ids: Annotated[
        str, typer.Option("--id", help="Column of the ids (default: they are made)", show_default=False)
    ] = "",
    keep: Annotated[
        list[str] | None, typer.Option(help="Columns of FILE to have in the output, too: COL,COL", show_default=False)
    ] = None,
    bad_rows: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a row that cannot be answered: stop, or list it and go on")
    ] = "stop",
    no_record: Annotated[bool, typer.Option("--no-record", help="Answers that are not recorded")] = False,
    version: Annotated[
        int | None,
        typer.Option(help="Ask no server, but this version of the store here; nothing is recorded", show_default=False),
    ] = None,
    connections: Annotated[int, typer.Option(help="To the service", min=1, max=64)] = 4,
    batch: Annotated[
        int | None, typer.Option(help="Rows a request (default: what the service likes)", min=1, show_default=False)
    ] = None,
    retry: Annotated[float, typer.Option(help="Seconds to wait for a service that does not answer", min=0)] = 300.0,
    run: Annotated[str, typer.Option(help="What made ids begin with (default: the time)", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Begin anew and replace the output")] = False,
    url: UrlOption = "",
    token: Annotated[str, typer.Option("--token", help="Token with the scope predict", show_default=False)] = "",
    config: ConfigOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors")] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file: in its order, each row once.

    Stopped or killed, the same command goes on where it was. The output has a line for each row: id, prediction,
    probabilities, version and adaptation.
    """
    from contextlib import nullcontext

    from evergreen_client.files import Asked, telling

    from service.command.predict import predict as predict_file
    from service.command.predict import print_scored

    settings = _settings(config)
    if _Umask.of_the_user is not None:
        os.umask(_Umask.of_the_user)  # a file of the user's own
    if version is not None and (url or no_record):
        raise typer.BadParameter("with --version no server is asked and nothing is recorded", param_hint="--version")
    asked = Asked(
        out=out or Path(),
        ids=ids,
        keep=tuple(_columns(keep)),
        bad_rows=bad_rows,
        batch_rows=batch or 0,
        connections=connections,
        run=run,
        record=not no_record,
        force=force,
    )
    with nullcontext() if quiet or as_json else telling() as on_progress:
        done = predict_file(
            settings,
            file,
            asked,
            url=url or settings.address,
            token=token,
            version=version,
            retry_s=retry,
            on_progress=on_progress,
        )
    if not quiet or as_json:
        print_scored(done, as_json)


# Traffic


@command("traffic")
def traffic(
    data: Annotated[
        str, typer.Option(help="Parquet or CSV file, or `sample` (default: setting data.source)", show_default=False)
    ] = "",
    rate: Annotated[float, typer.Option(help="Rows a second; 0: as fast as answered", min=0)] = 200.0,
    label_delay: Annotated[
        float, typer.Option(help="Seconds from an answer to its label (the sample's spread around it); -1: no labels")
    ] = 0.0,
    first: Annotated[str, typer.Option("--from", help='First row, "20%" or a number', show_default=False)] = "",
    until: Annotated[str, typer.Option("--until", help="Row to stop before", show_default=False)] = "",
    batch: Annotated[
        int | None, typer.Option(help="Rows a request (default: by rate)", min=1, show_default=False)
    ] = None,
    clients: Annotated[int, typer.Option(help="Requests in flight at most", min=1, max=1000)] = 4,
    scenario: Annotated[Scenario, typer.Option(help="What happens in the sample")] = "none",
    drift_at: Annotated[
        int | None, typer.Option(help="Row where the scenario begins (default: 2,000 after --from)", show_default=False)
    ] = None,
    over: Annotated[
        int, typer.Option(help="Rows until `gradual` is complete, and between the changes of `recurring`", min=1)
    ] = 4000,
    target: Annotated[str, typer.Option(help="Label column (default: setting data.target)", show_default=False)] = "",
    time_column: Annotated[
        str, typer.Option("--time", help="Time column (default: setting data.time)", show_default=False)
    ] = "",
    retry: Annotated[
        float, typer.Option(help="Seconds in which a request that failed on its way is sent again", min=0)
    ] = 0.0,
    ids_out: Annotated[
        Path | None, typer.Option(help="JSON lines of the acknowledged ids and versions", show_default=False)
    ] = None,
    url: UrlOption = "",
    token: Annotated[
        str, typer.Option("--token", help="Token with the scopes predict and feedback", show_default=False)
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay rows against a service, labels later.

    Rows go out in time order, at a steady rate; each one's label follows after its delay.
    """
    # Long, because typer takes the options from the signature, and its docstring is what `--help` shows.
    from service.command.rows import read_rows
    from service.command.traffic import replay_traffic

    settings = _settings(config)
    source = data or settings.data.source
    label, ordered_by = _label_and_time(settings.data, source, target, time_column, scenario)
    rows = read_rows(
        source,
        target=label,
        time_column=ordered_by,
        shuffle=settings.data.shuffle and source == settings.data.source and not ordered_by,
        first=first,
        until=until,
        scenario=scenario,
        drift_at=drift_at,
        over_rows=over,
        seed=settings.model.seed,
    )
    with show.TrafficBars(as_json) as on_progress:
        summary = replay_traffic(
            url or settings.address,
            rows,
            target=label,
            rate=rate,
            label_delay_s=_label_delays(source, rows, label_delay),
            batch=batch,
            clients=clients,
            retry_s=retry,
            ids_out=ids_out,
            token=token,
            on_progress=on_progress,
        )
    show.print_summary(summary, as_json)
    raise typer.Exit(OK if summary.ok else FAILED)


@command("replay")
def replay(
    data: Annotated[str, typer.Argument(help="Parquet or CSV file, or `sample`")],
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="Settings file with a policy to try; repeatable (default: the settings)", show_default=False),
    ] = None,
    target: Annotated[str, typer.Option(help="Label column (default: setting data.target)", show_default=False)] = "",
    time_column: Annotated[
        str, typer.Option("--time", help="Time column (default: setting data.time, else row order)", show_default=False)
    ] = "",
    ignore: Annotated[
        list[str] | None, typer.Option(help="Columns that are no features, COL,COL", show_default=False)
    ] = None,
    label_delay: Annotated[
        str, typer.Option(help="Rows from a row to its label; auto: by --label-time, else as --every")
    ] = "auto",
    label_time: Annotated[
        str, typer.Option(help="Column of the moment at which a label became known", show_default=False)
    ] = "",
    every: Annotated[int, typer.Option(help="Rows from check to check", min=20, max=65_000)] = 500,
    start: Annotated[float, typer.Option(help="Share that trains the first version, at most 20,000 rows")] = 0.2,
    max_rows: Annotated[int, typer.Option(help="Rows after those", min=100, max=1_000_000)] = 60_000,
    scenario: Annotated[Scenario, typer.Option(help="What happens in the sample, halfway")] = "none",
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Rows in random order: nothing changes over time")] = False,
    seed: Annotated[int, typer.Option(help="Of trainings and of --shuffle", min=0)] = 0,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="File for everything found", show_default=False)
    ] = None,
    to_html: Annotated[
        Path | None, typer.Option("--html", help="File for a page to look at", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Try a policy on a file: the whole loop on a simulated clock.

    Beside it: no training at all, as many at equal distances, and four times as many.
    """
    from service.command import replay as command

    for option, path in (("--json", to_json), ("--html", to_html)):  # before the minutes, not after them
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}: make it first", param_hint=option)
    asked = command.Asked(
        data=data,
        target=target,
        time=time_column,
        label_time=label_time,
        ignore=_columns(ignore),
        label_delay=label_delay,
        every=every,
        start=start,
        max_rows=max_rows,
        seed=seed,
        scenario=scenario,
        shuffle=shuffle,
    )
    study = command.run(asked, _settings(config), policy or ())
    if _Umask.of_the_user is not None:
        os.umask(_Umask.of_the_user)  # files of the user's own
    command.print_study(study)
    if to_json is not None:
        command.write_json(study, to_json)
    if to_html is not None:
        command.write_page(study, to_html)


def _label_and_time(data: DataSettings, source: str, target: str, time: str, scenario: str) -> tuple[str, str]:
    """The label's column and the time's column ("" for none); what is not given comes from the settings."""
    from service import sample
    from service.settings import SAMPLE

    if source == SAMPLE:
        return sample.TARGET, time
    if scenario != "none":
        raise typer.BadParameter("only the sample has scenarios: add --data sample", param_hint="--scenario")
    if data.source != SAMPLE:
        target, time = target or data.target, time or data.time
    if not target:
        raise typer.BadParameter(f"which column of {source} is the label?", param_hint="--target")
    return target, time


def _label_delays(source: str, rows: pd.DataFrame, mean_s: float) -> float | list[float] | None:
    """Seconds from each answer to its label: one number, or those of the sample's rows; None for no labels."""
    from service import sample
    from service.settings import SAMPLE

    if source == SAMPLE and mean_s > 0:
        delays: list[float] = (rows[sample.LABEL_DELAY] / sample.MEAN_LABEL_DELAY_S * mean_s).tolist()
        return delays
    return None if mean_s < 0 else mean_s


# Tokens

tokens = typer.Typer(
    help="Make, list and revoke tokens; every replica takes it up within two seconds.", no_args_is_help=True
)
app.add_typer(tokens, name="token")


@command("add", tokens)
def token_add(
    name: Annotated[str, typer.Argument(help="Name of its holder; runs, metrics and labels carry it")],
    scope: Annotated[list[str], typer.Option("--scope", help="predict, feedback, read, push or operate; repeatable")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept.

    To change one, add a second of the same name, let the clients take it, then `revoke NAME --old`.
    """
    from monitoring.store import store_now
    from service.tokens import add, store_of

    with store_of(_settings(config)) as store:
        made = add(store, name, scope, store_now(store))
    if as_json:
        show.print_json({"name": name, "scopes": scope, "token": made})
    else:
        typer.echo(made)


@command("list", tokens)
def token_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The tokens, with what each may do; each home's own, `admin`, is left out."""
    from service.tokens import good, named, store_of

    with store_of(_settings(config)) as store:
        found = named(good(store))
    if as_json:
        show.print_json([{"name": t.name, "scopes": list(t.scopes), "created_at": t.created_at} for t in found])
    else:
        show.print_tokens(found)


@command("revoke", tokens)
def token_revoke(
    name: Annotated[str, typer.Argument(help="Name of the tokens to revoke")],
    old: Annotated[bool, typer.Option("--old", help="All but the newest of this name")] = False,
    config: ConfigOption = None,
) -> None:
    """Revoke the tokens of a name."""
    from monitoring.store import store_now
    from service.tokens import revoke, store_of

    with store_of(_settings(config)) as store:
        gone = revoke(store, name, store_now(store), old=old)
    typer.echo(f"{gone} {'token' if gone == 1 else 'tokens'} named {name!r} revoked")


shared_keys = typer.Typer(
    help="The keys that replicas share: of hashed columns, and of the page's sessions.", no_args_is_help=True
)
app.add_typer(shared_keys, name="keys")


@command("list", shared_keys)
def keys_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Which keys the store knows, by their marks, and what wrapped them."""
    from service.shared_keys import stored
    from service.tokens import store_of

    with store_of(_settings(config)) as store:
        found = [{"key": one.name, "mark": one.mark, "wrapped_by": one.wrapped_by or None} for one in stored(store)]
    if as_json:
        show.print_json(found)
    else:
        show.print_keys(found)


@command("forget", shared_keys)
def keys_forget(
    name: Annotated[str, typer.Argument(help="privacy or session")],
    config: ConfigOption = None,
) -> None:
    """Forget a key that no home has any more; the next replica that starts says which it is from now on.

    What was hashed with a lost key stays as it is, and is not found by value any more.
    """
    from service.shared_keys import NAMES, forget
    from service.tokens import store_of

    if name not in NAMES:
        raise typer.BadParameter(f"expected {' or '.join(NAMES)}, got {name!r}", param_hint="NAME")
    with store_of(_settings(config)) as store:
        known = forget(store, name)
    typer.echo(
        f"the store {'does not know' if known else 'did not know'} the key {name!r}{' any more' if known else ''}"
    )


# Looking for trouble


@command("doctor")
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look for what usually goes wrong."""
    from service.command.doctor import examine

    found = examine(config)
    if as_json:
        show.print_json([{"check": each.check, "ok": each.ok, "found": each.found} for each in found])
    else:
        show.print_findings(found)
    raise typer.Exit(OK if all(each.ok for each in found) else FAILED)


# Shared by the commands above


def _settings(config: Path | None, given: Mapping[str, str] | None = None) -> Settings:
    """The settings; `given` goes into this process's environment, so that its children see the same."""
    from service.configuration import load

    os.environ.update(given or {})
    return load(config)


def _client(config: Path | None, url: str, token: str) -> Client:
    from evergreen_client import Client

    from service.keys import known_token

    settings = _settings(config)
    address = url or settings.address
    # The token this machine made is for the service of this machine: it is not sent to a stranger's URL.
    own = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1", urlsplit(settings.address).hostname)
    known = token or settings.security.token.get_secret_value() or (known_token(settings) if own else "")
    return Client(address, known, retry_s=0)  # a person waits: what cannot be done now is said at once


def _versions(config: Path | None, url: str, token: str) -> AbstractContextManager[Client | Versions]:
    """Whom to ask of versions: the service at `url`, without one the store of this host."""
    from service.command.versions import versions_of

    return _client(config, url, token) if url else versions_of(_settings(config))


def _columns(given: Iterable[str] | None) -> list[str]:
    return [name.strip() for each in given or () for name in each.split(",") if name.strip()]


def _asked(
    client: Client, run: int, wait: bool, as_json: bool, *, good: tuple[str, ...], timeout_s: float = TRAIN_WAIT_S
) -> None:
    """Say which run was queued and, when asked to wait, how it ended."""
    if not wait:
        if as_json:
            show.print_json({"run": run})
        else:
            typer.echo(f"queued as run {run}; `evergreen runs {run}` shows what comes of it")
        return
    console = show.open_console(stderr=True)
    with console.status(f"run {run}: queued") as spinner:
        done = client.wait(run, timeout_s=timeout_s, on_change=lambda now: spinner.update(f"run {run}: {now['state']}"))
    if as_json:
        show.print_json(done)
    else:
        show.print_run(done)
    outcome = done.get("outcome")
    raise typer.Exit(OK if outcome in good else REFUSED if outcome in STAYS else CRASHED)


def _since(text: str) -> float | None:
    """The moment given with --since; None when none was."""
    import time

    from service.command.since import since

    try:
        return since(text, time.time()) if text else None
    except ValueError:
        wanted = f'expected "2h", "3d", 10:05, 2026-11-23 or an ISO 8601 time, got {text!r}'
        raise typer.BadParameter(wanted, param_hint="--since") from None


if __name__ == "__main__":
    main()
