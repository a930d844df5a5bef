"""Edits on a hub (docs/method.md 12.5): a stand-in for the hub's HTTP interface, since none can be reached in tests."""

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest
import tiny
import torch

import sea_lens as sl
from sea_lens.edits.card import card


class Hub:
    """Repositories by name, each a folder of files at one commit."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.commits = 0

    def commit(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {self.commits}".encode()).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        @property
        def address(self) -> str:
            return f"http://{self.headers['Host']}"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                found = io.BytesIO()
                while size := int(self.rfile.readline(), 16):
                    found.write(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return found.getvalue()
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def answer(self, content: object = None, status: int = 200, **headers: str) -> None:
            body = b"" if content is None else json.dumps(content).encode()
            self.send(body, status, **{"Content-Type": "application/json", **headers})

        def send(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            path, body = urlparse(self.path).path, self.body()
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'user'}/{asked['name']}"
                hub.files.setdefault(name, {})
                return self.answer({"url": f"{self.address}/{name}", "name": name, "id": name})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            repo = "/".join(path.split("/")[3:5])
            if repo not in hub.files and "info/lfs" not in path:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if "/preupload/" in path:
                files = [{**one, "uploadMode": "lfs", "shouldIgnore": False} for one in json.loads(body)["files"]]
                for one in files:
                    one["uploadMode"] = "regular" if one["path"].endswith(".md") else "lfs"
                return self.answer({"files": files})
            if path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.address}/upload/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer({"objects": objects, "transfer": "basic"})
            if "/commit/" in path:
                import base64

                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[repo][value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[repo][value["path"]] = hub.uploads[value["oid"]]
                hub.commits += 1
                oid = hub.commit(repo)
                return self.answer({"commitUrl": f"{self.address}/{repo}/commit/{oid}", "commitOid": oid})
            return self.answer({"error": f"POST {path}"}, 404)

        def do_PUT(self) -> None:
            hub.uploads[self.path.rsplit("/", 1)[-1]] = self.body()
            self.send(b"")

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            if path.startswith("/api/models/"):
                repo = "/".join(path.split("/")[3:5])
                if repo not in hub.files:
                    return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                siblings = [{"rfilename": name} for name in hub.files[repo]]
                return self.answer({"id": repo, "sha": hub.commit(repo), "siblings": siblings, "private": False})
            owner, name, *rest = path.strip("/").split("/")
            repo = f"{owner}/{name}"
            if rest[:1] != ["resolve"]:
                return self.answer({"error": f"GET {path}"}, 404)
            if repo not in hub.files:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            content = hub.files[repo].get("/".join(rest[2:]))
            if content is None:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            etag = hashlib.sha256(content).hexdigest()
            return self.send(content, X_Repo_Commit=hub.commit(repo), ETag=f'"{etag}"', Accept_Ranges="bytes")

        do_HEAD = do_GET  # noqa: N815

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, in place of the one that huggingface_hub knows."""
    import huggingface_hub
    from huggingface_hub import constants

    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def drawn(rank: int = 3) -> sl.SpectralEdit:
    """An edit of random activations."""
    neutral, positive, negative = (torch.randn(20, 3, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))
    return sl.fit_activations(neutral, positive, negative, rank=rank)


@pytest.mark.filterwarnings("ignore")
def test_what_is_pushed_is_pulled_byte_by_byte(hub, tmp_path):
    edit = drawn().with_defaults(layers="last-2", strength=1.5)
    edit.save(tmp_path / "edit.safetensors")
    address = edit.push_to_hub("user/true-words", results={"Effect on test": "+0.31 [+0.12, +0.50], controls −0.02"})
    assert "user/true-words" in address
    assert hub.files["user/true-words"]["edit.safetensors"] == (tmp_path / "edit.safetensors").read_bytes()
    pulled = sl.SpectralEdit.from_pretrained("user/true-words")
    pulled.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "edit.safetensors").read_bytes()
    assert pulled.defaults == edit.defaults
    told = hub.files["user/true-words"]["README.md"].decode()
    assert "+0.31 [+0.12, +0.50], controls −0.02" in told
    assert 'from_pretrained("user/true-words")' in told
    # The newest one is what comes.
    drawn(5).push_to_hub("user/true-words")
    assert sl.SpectralEdit.from_pretrained("user/true-words").ranks[0] == (5, 5)


@pytest.mark.filterwarnings("ignore")
def test_other_methods_are_pushed_and_pulled_and_what_is_not_there_is_one_clear_error(hub, tmp_path, monkeypatch):
    folder = tiny.save_tiny_model("llama", tmp_path / "llama")
    model = sl.load_model(folder)
    edit = sl.mean_difference(sl.capture(model, tiny.demonstrations(), progress=False))
    edit.push_to_hub("user/mean")
    pulled = sl.MeanDifference.from_pretrained("user/mean")
    assert pulled.digest == edit.digest
    # Its card offers what works: at positions of its own no server has it.
    told = hub.files["user/mean"]["README.md"].decode()
    assert 'sl.MeanDifference.from_pretrained("user/mean")' in told
    assert "vllm serve" not in told
    with monkeypatch.context() as unplugged:
        unplugged.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(sl.FileError, match="user/mean on the hub"):
            edit.push_to_hub("user/mean")
    with pytest.raises(sl.FileError, match="user/nothing on the hub"):
        sl.SpectralEdit.from_pretrained("user/nothing")
    hub.files["user/empty"] = {}
    with pytest.raises(sl.FileError, match="user/empty on the hub"):
        sl.SpectralEdit.from_pretrained("user/empty")
    with pytest.raises(sl.FileError, match=r"not a name|on the hub"):
        sl.SpectralEdit.from_pretrained("not a name")
    # An edit of another method is told from this one by its file.
    with pytest.raises(sl.FileError, match=r"mean-difference edit: expected a sea_lens spectral edit"):
        sl.SpectralEdit.from_pretrained("user/mean")
    # And one that was pulled knows its model.
    torch.manual_seed(9)
    from transformers import AutoConfig, AutoModelForCausalLM

    stranger = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    with pytest.raises(sl.MismatchError, match="with the embedding"):
        sl.hf.install(stranger, pulled)


def test_an_edit_is_read_from_a_folder_too(tmp_path):
    edit = drawn()
    edit.save(tmp_path / "edit.safetensors")
    assert sl.SpectralEdit.from_pretrained(tmp_path).digest == edit.digest
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(sl.FileError, match=r"edit\.safetensors"):
        sl.SpectralEdit.from_pretrained(empty)


def test_a_card_tells_model_data_options_and_effects_beside_controls(tmp_path):
    bed = sl.testbed.load()
    edit = sl.fit(sl.capture(bed.model, bed.demonstrations, progress=False), rank=12).with_defaults(layers="last-2")
    controls = [sl.randomised(edit, seed) for seed in range(2)]
    effect = sl.effect(bed.model, edit, list(bed.contrasts["test"])[:20], control=controls)
    text = card(edit, "edit.safetensors", results={"Effect on 20 test contrasts": effect})
    model = edit.provenance["model"]
    said = [model["name"], "3 layers", str(edit.n), "0: (12, 12)", "centre false", "layers last-2", edit.digest[:16]]
    said += str(effect).splitlines()
    said += ["sl.load_edit", "sl.hf.applied", "vllm serve", "control"]
    assert [one for one in said if one not in text] == []
    assert "without an effect beside its control nothing is claimed" in card(edit, "edit.safetensors")
    assert text.startswith("---\nlibrary_name: sea-lens\n")
