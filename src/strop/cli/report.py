"""`strop report RUN [RUN ...]`: the HTML page of runs, as a file or from a local server."""

from __future__ import annotations

from pathlib import Path

from strop.cli.flags import Flag, all_values
from strop.errors import ConfigError, folder_beside

TITLE = """strop report RUN [RUN ...]: the page of a run, or of several beside each other.

One self-contained file: RUN/report.html, or comparison.html here for several runs. With --serve the page comes
from this machine, follows runs while they train, and pages all of their samples."""
FLAGS = (
    Flag("serve", bool, default=False, help="Serve the page on this machine, and follow the runs, until Ctrl-C."),
    Flag("port", int, default=0, help="Port to serve on; 0 takes a free one."),
    Flag("output", str, help="Where the page is written, if not in its usual place."),
)


def run(argv: list[str]) -> int:
    folders: list[str] = []
    values = all_values(argv, FLAGS, folders)
    if not folders or (missing := [folder for folder in folders if not Path(folder).is_dir()]):
        said = "No folder is named."
        if folders:
            said = f"{', '.join(missing)}: there is no such folder.{folder_beside(missing[0])}"
        raise ConfigError(f"{said} Give the output_dir of a finished or running training: strop report RUN")
    if values["serve"]:
        return serve(folders, values["port"])
    from strop.report import write_report

    print(write_report(*folders, output=values["output"]))
    return 0


def serve(folders: list[str], port: int) -> int:
    """Serve until the user has seen enough."""
    from strop.report.serve import Server

    server = Server(folders, port)
    print(f"{server.address}   (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0
