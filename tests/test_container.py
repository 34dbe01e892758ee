"""The image and how it is run: as a user, with time to save, on folders and caches that outlive it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE: Any = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
CONSTRAINTS = [line for line in (ROOT / "docker" / "constraints.txt").read_text().splitlines() if line[0] != "#"]


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def test_sigterm_reaches_the_run_and_leaves_it_time_to_save() -> None:
    service = COMPOSE["services"]["train"]
    assert service["init"] is True
    assert seconds(service["stop_grace_period"]) >= 60


def test_no_folder_of_the_host_is_made_by_root_and_caches_are_on_a_volume() -> None:
    service = COMPOSE["services"]["train"]
    binds = [each for each in service["volumes"] if isinstance(each, dict)]
    assert {each["target"] for each in binds} == {"/data", "/app/outputs"}
    assert [each["bind"]["create_host_path"] for each in binds] == [False, False]
    assert service["user"] == "${RUN_AS:-1000:1000}"
    assert "cache:/cache" in service["volumes"]
    assert "cache" in COMPOSE["volumes"]
    assert "XDG_CACHE_HOME=/cache" in DOCKERFILE
    assert "chmod 1777 /cache" in DOCKERFILE


def test_the_image_is_pinned_has_a_compiler_and_is_no_roots() -> None:
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"apt-get install .* g\+\+ ", DOCKERFILE)
    assert "--constraint constraints.txt" in DOCKERFILE
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert users == ["1000:1000"]  # a number: Kubernetes' runAsNonRoot takes no name
    assert DOCKERFILE.index("USER 1000") < DOCKERFILE.index("ENTRYPOINT")


def test_all_that_is_copied_into_the_image_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored


def test_known_good_versions_name_no_host_and_cover_what_the_image_installs() -> None:
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)] == []
    pinned = {line.partition("==")[0] for line in CONSTRAINTS}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["tensorboard"]
    names = {re.split(r"[\s<>=!~\[;]", each)[0].lower() for each in wanted}
    assert names - pinned == set()


def test_hadolint_looks_at_the_image_in_ci() -> None:
    assert re.search(r"^hadolint docker/Dockerfile$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
