"""The catalogue and the OpenAPI document: typed for every task, true, and new without a restart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from jobstream.redis import UrlSource
from tests.acceptance.guarded import guarded
from tests.acceptance.service import Service
from tests.acceptance.wire import Json, done, events, problem, submit, until

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@pytest.fixture
async def document(http: httpx2.AsyncClient) -> Json:
    """The OpenAPI document."""
    response = await http.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    document: Json = response.json()
    return document


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _walk(value)
    elif isinstance(node, list):
        for item in node:
            yield from _walk(item)


def _resolve(document: Json, reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node: Any = document
    for part in reference[2:].split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def _validator(document: Json, schema: Json) -> jsonschema_rs.Validator:
    """A schema of the document, as its readers would compile it."""
    return jsonschema_rs.validator_for(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "components": document["components"]}
    )


def _json_schema(body: Json) -> Json:
    schema: Json = body["content"]["application/json"]["schema"]
    return schema


async def test_the_document_is_openapi_31(document: Json) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"] == "jobstream"
    assert document["info"]["version"]
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(ids) == len(set(ids))
    for path, _, operation in _operations(document):
        parameters = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert parameters == set(re.findall(r"{(\w+)}", path)), path
        assert all(p["required"] for p in operation.get("parameters", ()) if p["in"] == "path")
        assert operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|[45]XX", status)
            assert response["description"]
            for link in response.get("links", {}).values():
                assert link["operationId"] in ids
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in document["components"]["schemas"])


async def test_every_reference_resolves_and_every_schema_compiles(document: Json) -> None:
    references = [value for key, value in _walk(document) if key == "$ref"]
    mapped = [target for key, value in _walk(document) if key == "mapping" for target in value.values()]
    assert references
    assert mapped
    for reference in references + mapped:
        _resolve(document, reference)
    assert "$defs" not in dict(_walk(document))
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        _validator(document, schema)


async def test_every_failure_is_documented_as_a_problem(document: Json) -> None:
    problem_schema = {"$ref": "#/components/schemas/Problem"}
    for path, method, operation in _operations(document):
        failures = {s: r for s, r in operation["responses"].items() if s >= "4"}
        assert failures, (method, path)
        for response in failures.values():
            assert response["content"] == {"application/problem+json": {"schema": problem_schema}}, (method, path)
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_every_task_has_typed_operations(document: Json, http: httpx2.AsyncClient) -> None:
    tasks = (await http.get("/tasks")).json()["tasks"]
    assert {"words", "files", "primes", "fetch", "echo", "hang-loop"} <= {task["name"] for task in tasks}
    for task in tasks:
        post = document["paths"][f"/{task['name']}"]["post"]
        faces = document["paths"][f"/{task['name']}/{{job_id}}"]
        accepted = post["responses"][str(task["accepted_status"])]
        assert _json_schema(accepted) == {"$ref": "#/components/schemas/Job"}
        assert {"Location", "Operation-Location", "Link", "Retry-After"} <= accepted["headers"].keys()
        assert {"400", "413", "415", "422", "503"} <= post["responses"].keys()
        assert {"200", "202", "404", "410", "500", "503", "504"} <= faces["get"]["responses"].keys()
        assert {"202", "204", "404", "410"} <= faces["delete"]["responses"].keys()
        assert ("multipart/form-data" in post["requestBody"]["content"]) == bool(task["file_fields"])


async def test_readers_are_shown_their_tasks_first_and_every_group_is_described(document: Json) -> None:
    groups = [group["name"] for group in document["tags"]]
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert set(groups) == used
    assert all(group["description"] for group in document["tags"])
    assert groups.index("words") < groups.index("jobs") < groups.index("cancel-jobs")


async def test_documented_inputs_are_what_is_accepted(document: Json, http: httpx2.AsyncClient) -> None:
    samples: dict[str, list[Json]] = {
        "order": [{"articles": [{"name": "pen"}]}, {"articles": []}, {"articles": [{"name": ""}]}, {}],
        "tree": [{"children": [{"animal": {"kind": "cat"}}]}, {"animal": {"kind": "cow"}}, {"children": [1]}],
        "measure-maybe": [{"note": "x"}, {"note": 1}, {}, {"note": "x", "file": "text"}],
    }
    for task, bodies in samples.items():
        schema = _json_schema(document["paths"][f"/{task}"]["post"]["requestBody"])
        for body in bodies:
            response = await http.post(f"/{task}", json=body)
            assert _validator(document, schema).is_valid(body) == (response.status_code == 202), (task, body)


async def test_answers_are_what_is_documented(document: Json, http: httpx2.AsyncClient) -> None:
    schemas = document["components"]["schemas"]
    job_schema, problem_schema = _validator(document, schemas["Job"]), _validator(document, schemas["Problem"])
    inputs: dict[str, Json] = {
        "words": {"text": "a b"},
        "order": {"articles": [{"name": "pen"}]},
        "tree": {"animal": {"kind": "dog", "tricks": ["roll"]}, "children": [{}]},
        "refuse": {},
        "primes": {"limit": 100},
    }
    for task, data in inputs.items():
        job = await submit(http, task, data)
        job_schema.validate(job)
        job_schema.validate(await done(http, job))
        result = await http.get(job["links"]["result"])
        if result.is_success:
            responses = document["paths"][f"/{task}/{{job_id}}"]["get"]["responses"]
            _validator(document, _json_schema(responses["200"])).validate(result.json())
        else:
            problem_schema.validate(problem(result, 422))
    page = document["paths"]["/jobs"]["get"]["responses"]["200"]
    _validator(document, _json_schema(page)).validate((await http.get("/jobs?limit=1000")).json())
    problem_schema.validate(problem(await http.post("/order", json={}), 422))
    problem_schema.validate(problem(await http.get("/nowhere"), 404))


async def test_file_fields_are_binary_parts(document: Json) -> None:
    def properties(task: str) -> Json:
        content = document["paths"][f"/{task}"]["post"]["requestBody"]["content"]
        found: Json = _resolve(document, content["multipart/form-data"]["schema"]["$ref"])["properties"]
        return found

    binary = {"type": "string", "format": "binary"}
    assert properties("measure")["files"]["items"] == binary
    assert properties("measure")["files"]["minItems"] == 1
    assert binary.items() <= properties("measure-one")["file"].items()
    contents = {
        task: set(document["paths"][f"/{task}"]["post"]["requestBody"]["content"])
        for task in ("measure", "measure-maybe", "echo")
    }
    assert contents == {
        "measure": {"multipart/form-data"},
        "measure-maybe": {"multipart/form-data", "application/json"},
        "echo": {"application/json"},
    }
    assert "sha256" not in str(properties("measure"))


async def test_every_operation_names_the_failures_of_its_kind(document: Json) -> None:
    for path, method, operation in _operations(document):
        responses = operation["responses"]
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= responses.keys(), (method, path)
        if "{job_id}" in path:
            assert {"404", "410"} <= responses.keys(), (method, path)
        if not path.startswith(("/problems", "/livez")):
            assert "Retry-After" in responses["503"]["headers"], (method, path)
        if any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ())):
            assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= responses["429"]["headers"].keys(), path
            assert "409" in responses


@pytest.mark.parametrize("path", ["/jobs/batch", "/quiet"])
async def test_refusals_are_answered_as_they_are_documented(real_source: UrlSource, path: str) -> None:
    limits = {"tenant_rate": "2/m", "queue_depth": 1, "max_body_bytes": 1000, "max_batch_bytes": 1000}
    async with guarded(real_source, **limits) as service, service.http(await service.key("acme")) as http:

        async def send(queue: str) -> httpx2.Response:
            if path == "/quiet":
                return await http.post(path, json={}, params={"queue": queue})
            return await http.post(path, json=[{"task": "quiet", "queue": queue}])

        document = (await http.get("/openapi.json")).json()
        found = [await send("one"), await send("one"), await send("two"), await send("three")]
        found.append(await http.post(path, json="x" * 2000))
        found.append(await http.post(path, json={}, headers={"Authorization": "Bearer nobody"}))
    assert [answer.status_code for answer in found] == [202, 503, 202, 429, 413, 401]
    for answer in found:
        documented = document["paths"][path]["post"]["responses"][str(answer.status_code)]
        headers = {name.lower() for name in documented.get("headers", {})}
        assert headers - answer.headers.keys() <= {"idempotent-replayed"}, answer.status_code


async def test_without_a_key_the_document_says_nothing_of_the_tasks(real_source: UrlSource) -> None:
    async with guarded(real_source) as service:
        async with service.http() as http:
            stranger = await http.get("/openapi.json")
        async with service.http(await service.key("acme")) as http:
            known = await http.get("/openapi.json")
            assert (await http.get("/openapi.json")).json() == known.json()
        async with service.http("wrong") as http:
            problem(await http.get("/openapi.json"), 401, "unauthorized")
    assert stranger.status_code == 200
    assert {"Authorization", "X-API-Key"} <= set(re.split(", *", stranger.headers["vary"]))
    assert known.json()["paths"].keys() - stranger.json()["paths"].keys() == {"/quiet", "/quiet/{job_id}"}
    assert "quiet" not in stranger.text.lower()
    assert {"401", "403"} <= known.json()["paths"]["/quiet"]["post"]["responses"].keys()


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_documentation_pages_need_nothing_from_elsewhere(http: httpx2.AsyncClient, page: str) -> None:
    response = await http.get(page)
    assert response.status_code == 200
    links = re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*['"]([^'"]+)['"]""", response.text)
    assert "/openapi.json" in links
    assert len(links) >= 3
    for link in links:
        assert link.startswith("/"), link
        assert not link.startswith("//"), link
        assert (await http.get(link)).status_code == 200, link
    assert not re.search("https?://", response.text)


async def test_the_root_leads_browsers_to_the_docs_and_programs_to_the_links(http: httpx2.AsyncClient) -> None:
    browser = await http.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (303, "/docs")
    links = (await http.get("/")).json()["links"]
    for link in links.values():
        assert (await http.get(link)).status_code == 200


async def test_the_catalogue_tells_what_there_is_and_who_would_run_it(http: httpx2.AsyncClient) -> None:
    task = (await http.get("/tasks/see_other")).json()
    assert task in (await http.get("/tasks")).json()["tasks"]
    assert (task["name"], task["accepted_status"], task["queue"], task["executor"]) == (
        "see_other",
        303,
        "default",
        "loop",
    )
    assert (task["summary"], task["workers"]) == ("A task that answers 303.", 1)
    assert task["output_schema"] == {"type": "string"}
    assert task["links"] == {"submit": "/see_other", "jobs": "/jobs?task=see_other"}
    problem(await http.get("/tasks/see-other"), 404, "unknown-task")


async def test_a_new_workers_task_is_known_without_a_restart(http: httpx2.AsyncClient, service: Service) -> None:
    if service.redis_url is None:
        pytest.skip("fakeredis lives in one process")
    before = (await http.get("/openapi.json")).json()
    assert "/newcomer" not in before["paths"]
    problem(await http.post("/newcomer", json={"name": "x"}), 404, "unknown-task")
    known = await submit(http, "echo", delay="600")
    worker = service.start_worker("tests.acceptance.more_tasks")
    async with events(http, known) as stream:  # pings are the clock
        await until(stream, "snapshot")
        while (await http.get("/tasks/newcomer")).status_code == 404:
            await until(stream, "comment")
    try:
        document = (await http.get("/openapi.json")).json()
        assert document["paths"]["/newcomer"]["post"]["summary"] == "Greet somebody."
        assert document["paths"].keys() - {"/newcomer", "/newcomer/{job_id}"} == before["paths"].keys()
    finally:
        worker.terminate()
        await http.delete(known["links"]["self"])
    # The worker has gone, its task is still announced: the job is taken and waits.
    job = await submit(http, "newcomer", {"name": "x"}, delay="600")
    assert (await http.delete(job["links"]["self"])).status_code == 204
