"The OpenAPI document: valid, with examples that the schema accepts, and a page that nothing can break out of."
import ast
import json
import re
import shlex
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import schemathesis
from support.trained_project import schema as schema_of

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.vectors import VectorError, read_vector
from mlops_nb.model.predictor import Predictor
from mlops_nb.serve import handlers, http_messages
from mlops_nb.serve.http_messages import INFERENCE_HEADER_CONTENT_LENGTH, REQUEST_HEADERS, RequestHeader
from mlops_nb.serve.openapi import DOCS_CSP, STATUS_DESCRIPTIONS, column_json_schema, docs_html, openapi_document

NASTY = """</style></pre><script>alert('1')</script> "quoted" & 'so' `ls` $(ls) \\ ünï"""


def route(method, path, scope, handler):
    headers = (INFERENCE_HEADER_CONTENT_LENGTH,) if handler == "infer" else ()
    return SimpleNamespace(method=method, path=path, scope=scope, handler=SimpleNamespace(__name__=handler),
                           summary=NASTY, headers=headers)


ROUTES = [route("GET", "/health", "public", "server_live"), route("GET", "/metrics", "read", "prometheus_metrics"),
          route("GET", "/odd", "read", "new"),
          route("GET", "/v2/models/{model}/versions/{version}", "read", "model_metadata"),
          route("POST", "/v2/models/{model}/infer", "predict", "infer"),
          route("POST", "/v1/endpoints/{model}:predict", "predict", "predict"),
          route("GET", "/v2/health/ready", "public", "server_ready"),
          route("POST", "/v1/endpoints/{model}:feedback", "feedback", "feedback")]


class Known(Predictor):
    "A predictor as far as its description needs it."
    def __init__(self, schema): self.schema, self.model, self.policy = schema, None, None

    @property
    def required_columns(self): return [c for c in self.schema.columns if c not in ("y", "id")]


HOSTILE = Schema(NASTY, "binary", "y", classes=["no", NASTY], entity="id", columns={
    "id": Column("text", feature=False), NASTY: Column("category", nullable=True, domain=[NASTY, "b"],
                                                       on_new_category="quarantine",
    doc=NASTY),
    "x": Column("number", range=(None, -.5), doc="minus"), "when": Column("timestamp", range=("2020-01-01", None)),
    "day": Column("timestamp", nullable=True, format="%d.%m.%Y"), "y": Column("category")})
SCHEMAS = {"binary": schema_of("binary"), "regression": schema_of("regression"), "multiclass": schema_of("multiclass"),
    "hostile": HOSTILE}


@pytest.fixture(scope="module")
def document(): return json.loads(json.dumps(openapi_document(ROUTES, {n: Known(s) for n, s in SCHEMAS.items()})))


def references(node):
    if isinstance(node, dict):
        if "$ref" in node: yield node["$ref"]
        for v in node.values(): yield from references(v)
    if isinstance(node, list):
        for v in node: yield from references(v)


def checker(document, name):
    "A validator of one schema of the document."
    return jsonschema.Draft202012Validator({**document["components"]["schemas"][name],
                                            "components": document["components"]})


def test_the_document_is_valid(document):
    for s in document["components"]["schemas"].values(): jsonschema.Draft202012Validator.check_schema(s)
    names = {f"#/components/schemas/{n}" for n in document["components"]["schemas"]}
    assert set(references(document)) <= names
    schemathesis.openapi.from_dict(document).config  # noqa: B018 it loads
    ids = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(ids) == len(set(ids)) == 4 + 4 * 4
    for path, methods in document["paths"].items():
        for o in methods.values():
            assert re.findall(r"{(\w+)}", path) == [p["name"] for p in o["parameters"] if p["in"] == "path"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_examples_fit_their_schemas(document, name):
    row = document["components"]["schemas"][f"{name}.Row"]
    jsonschema.validate(row["examples"][0], row)
    for end in (f"/v1/endpoints/{name}:predict", f"/v1/endpoints/{name}:feedback", f"/v2/models/{name}/infer"):
        body = document["paths"][end]["post"]["requestBody"]["content"]["application/json"]
        checker(document, body["schema"]["$ref"].rpartition("/")[2]).validate(body["example"])
    ask = checker(document, f"{name}.PredictRequest")
    good = row["examples"][0]
    for body in (good, [good, good], {"instances": [good], "id": "a"}): ask.validate(body)
    for body in ({}, [], {"instances": []}, [1], {**good, "unknown": 1},
        {"instances": [good], "id": "x" * 257}): assert not ask.is_valid(body)


def test_what_a_column_may_hold():
    def good(value, *args, **kw):
        return jsonschema.Draft202012Validator(column_json_schema(Column(*args, **kw))).is_valid(value)
    assert good(3, "integer", range=(0, 3)) and not good(4, "integer", range=(0, 3)) and not good(1.5,
        "integer") and not good(None,
        "integer")
    assert good(None, "integer", nullable=True) and not good("1", "integer") and not good(True, "integer") and good(1,
        "number")
    closed = {"domain": ["a"], "on_new_category": "quarantine"}
    assert good("b", "category", domain=["a"]) and not good("b", "category", **closed) and not good(None, "category",
                                                                                                    **closed)
    assert good(None, "category", nullable=True, **closed)
    assert column_json_schema(Column("timestamp", range=("2020-01-01",
                                                         None)))["description"].endswith("From 2020-01-01 to any time.")
    assert "enum" not in column_json_schema(Column("category",
                                                   domain=["a"])) and "a" in column_json_schema(Column("category",
        domain=["a"]))["description"]


@pytest.mark.parametrize("value, good", [
    ([1, 2.5], True), ({"values": [1, 2.5], "producer": "p", "version": "1"}, True), ({"values": [1, 2]}, True),
    (None, False), ([1], False), ([1, 2, 3], False), (["a", "b"], False), ({"values": [1]}, False),
    ({"producer": "p"}, False), ({"values": [1, 2], "model": "p"}, False), ("a", False)])
def test_a_vector_comes_as_an_array_or_with_its_origin(value, good):
    column = Column("vector", size=2, producer="p", version="1")
    assert jsonschema.Draft202012Validator(column_json_schema(column)).is_valid(value) == good
    try: taken = bool(read_vector(value, column.form))
    except VectorError: taken = False
    assert taken == good # as the server itself


def test_every_route_says_whom_it_is_for_and_what_can_come(document):
    open_ones = {"/health", "/v2/health/ready"}
    for path, methods in document["paths"].items():
        for method, o in methods.items():
            keyed = {"401", "429"} & o["responses"].keys()
            if path in open_ones: assert not o["security"] and not keyed
            else: assert o["security"] == [{"key": [o["x-scope"]]}] and len(keyed) == 2
            assert ("404" in o["responses"]) == any(f"{n}" in re.split("[/:]", path) for n in SCHEMAS)
            assert "403" in o["responses"] and "421" not in o["responses"] # with keys any name may lead here
            if method == "post": assert {"400", "408", "413", "503", "504"} <= o["responses"].keys()
    without = [o for m in openapi_document(ROUTES, {"binary": Known(SCHEMAS["binary"])},
                                           auth_required=False)["paths"].values() for o in m.values()]
    assert not [o for o in without if o["security"] or {"401", "429"} & o["responses"].keys()]


SERVE = Path(__file__).parents[2] / "mlops_nb/serve"
# HTTP's own, or described as security
TRANSPORT = {"accept-encoding", "authorization", "content-encoding", "content-length", "content-type", "host", "origin"}


def calls(name):
    "Every call of a function or method of that name in the package, as its syntax tree."
    for path in SERVE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", None),
                                                       getattr(node.func, "id", None)):
                yield path.stem, node


def test_every_header_that_is_read_is_in_the_table():
    read = [(m, n.args[0]) for m, n in calls("get") if ast.unparse(n.func.value) in ("headers", "request.headers")]
    assert len(read) >= 8
    for module, arg in read:
        if isinstance(arg, ast.Constant):
            assert arg.value in TRANSPORT, f"{module} reads {arg.value!r}; put it into REQUEST_HEADERS"
        else:
            name = ast.unparse(arg)
            of_plan = module == "routing" and name in ("self._header", "rule_header")  # `Router.request_headers`
            assert of_plan or getattr(http_messages, name) in REQUEST_HEADERS, f"{module} reads {name}"


def test_every_status_that_is_answered_is_described():
    raised = {n.args[0].value for _, n in calls("HTTPException") if n.args and isinstance(n.args[0], ast.Constant)}
    raised |= {status for status, *_ in handlers._ERROR_RESPONSES.values()} | {500}
    assert len(raised) > 8 and raised <= STATUS_DESCRIPTIONS.keys()


def test_what_an_endpoint_reads_is_listed_for_it():
    extra = [RequestHeader("x-customer", "sticky", {"type": "string"}), REQUEST_HEADERS["x-flags"],
             REQUEST_HEADERS["x-static"]]
    schemas = {"a": Known(SCHEMAS["binary"]), "b": Known(SCHEMAS["binary"])}
    found = openapi_document(ROUTES, schemas, request_headers={"a": extra})["paths"]
    def named(path): return {p["name"] for p in found[path]["post"]["parameters"] if p["in"] == "header"}
    assert named("/v1/endpoints/b:predict") == {"x-request-id", "traceparent", "x-deadline-ms"}
    assert named("/v1/endpoints/a:predict") == {"x-request-id", "traceparent", "x-deadline-ms", "x-customer",
                                                  "x-flags", "x-static"}
    assert named("/v2/models/a/infer") == named("/v1/endpoints/a:predict") | {INFERENCE_HEADER_CONTENT_LENGTH}
    assert named("/v1/endpoints/a:feedback") == {"x-request-id", "traceparent", "x-deadline-ms"}


class Page(HTMLParser):
    "The tags, the texts, and whether each tag is closed."
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.wrong = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"): self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag: self.wrong.append(tag)

    def handle_data(self, data): self.texts.append((self.open[-1] if self.open else "", data))


def test_nothing_breaks_out_of_the_page(document):
    page = docs_html(document, "https://models.example")
    seen = Page(page)
    assert not seen.open and not seen.wrong and not {"script", "iframe", "img", "form", "object"} & {*seen.tags}
    assert not [a for a in seen.attributes if a[0].startswith("on") or a[0] == "src" or a[0] == "style"]
    assert {v for k, v in seen.attributes if k == "href"} == {"data:,", "/openapi.json", "#server",
                                                              *(f"#{n}" for n in SCHEMAS)}
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert b64encode(sha256(style.encode()).digest()).decode() in DOCS_CSP and "unsafe" not in DOCS_CSP
    assert sum(NASTY in t for tag, t in seen.texts if tag == "td") > 0


def test_commands_are_what_a_shell_would_run(document):
    commands = [shlex.split(t) for tag, t in Page(docs_html(document, "https://models.example")).texts if tag == "pre"]
    assert len(commands) == 4 + 4 * 4 and all(c[0] == "curl" and c[1].startswith("https://models.example/")
                                              for c in commands)
    for c in commands:
        path = c[1].removeprefix("https://models.example").replace("VERSION", "{version}")
        if "-d" in c:
            body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
            assert json.loads(c[c.index("-d") + 1]) == body
