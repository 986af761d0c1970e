import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.report import write_report
from strop.report.serve import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    samples = [{"step": i, "prompt": f"p{i}", "completion": "<b>", "reward": i / 30} for i in range(31)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    server = Server([tmp_path])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_samples_are_paged_and_not_in_the_page(server: Server) -> None:
    status, page = get(server, "/")
    assert status == 200 and '"samples":[]' in page and "connect-src 'self'" in page
    status, text = get(server, "/samples?runs=0&order=best&bars=19,0")
    found = json.loads(text)
    assert status == 200 and [group[0]["step"] for group in found["groups"]] == [30, 29, 1, 0]


def test_a_long_sample_is_whole_on_the_server_and_cut_in_a_file(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, "prompt": "p", "completion": "long " * 16_000}) + "\n")
    server.shelf.read()
    found = json.loads(get(server, "/samples?runs=0&step=99")[1])
    assert found["groups"][0][0]["completion"] == "long " * 16_000
    assert len(write_report(tmp_path).read_text()) < 200_000


def test_what_a_run_writes_is_news_once(server: Server, tmp_path: Path) -> None:
    version = json.loads(get(server, "/data")[1])["version"]
    assert get(server, f"/data?since={version}") == (204, "")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.25}\n')
    server.shelf.next = 0.0
    news = json.loads(get(server, f"/data?since={version}")[1])
    assert news["runs"][0]["curves"]["loss"] == [[1, 2], [0.5, 0.25]] and news["version"] != version


@pytest.mark.parametrize(
    ("path", "status"),
    [("/other", 404), ("/samples?runs=7", 400), ("/samples?runs=x", 400), ("/samples?runs=0&step=a", 400)],
)
def test_other_addresses_are_refused_by_a_sentence(server: Server, path: str, status: int) -> None:
    found, said = get(server, path)
    assert found == status and said


def test_a_page_of_another_site_cannot_read_along(server: Server) -> None:
    assert get(server, "/data", host="evil.example:80")[0] == 403
