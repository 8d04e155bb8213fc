"""A small Hugging Face Hub on 127.0.0.1: enough of its HTTP interface for the real client to push and pull.

Repositories live in memory as lists of commits. Like the Hub it wants a token for writing and for what is
private, refuses a card whose metadata is wrong, and counts requests of config.json as downloads.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

from tests.helpers.fresh_python import run_python

TOKEN = "hf_stand_in"


class HubStandIn:
    """Serves while the context is open.

    `commits[repo]` is a list of (commit id, files) with files as path → bytes; `downloads[repo]` a number;
    `branches[repo, branch]` the id of its last commit; `private` the repositories that want a token. So many
    of the next commits as `interrupted` says are received, and then the connection breaks. `validated` are
    the cards that were looked at.
    """

    def __init__(self):
        self.commits, self.downloads, self.branches = {}, {}, {}
        self.private, self.interrupted, self.validated = set(), 0, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._server.server_close()

    def find(self, repo, revision):
        """Return (commit id, files), or None."""
        name = self.branches.get((repo, revision), revision)
        return next((commit for commit in self.commits[repo] if commit[0] == name), None)

    def commit(self, repo, files, branch="main"):
        number = len(self.commits[repo])
        name = hashlib.sha1(f"{repo} {number} {sorted(files)}".encode()).hexdigest()
        self.commits[repo].append((name, files))
        self.branches[repo, branch] = name
        return name


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        repo, action, branch = re.fullmatch(
            r"/api/models/(.+?)/(preupload|commit|branch)/([^/]+)", path
        ).groups()
        if repo not in self.hub.commits:
            return self._missing("RepoNotFound")
        if action == "branch":
            return self._branch(repo, branch)
        if (repo, branch) not in self.hub.branches:
            return self._missing("RevisionNotFound")
        if action == "preupload":
            return self._preupload(repo, branch, json.loads(body))
        return self._commit(repo, branch, body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repo, what, revision = found.groups()
            commit = self._find(repo, revision or "main")
            if commit:
                self._json(self._tree(commit[1]) if what == "tree" else self._info(repo, commit))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        else:
            self._missing("EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *_arguments):
        pass

    def _create(self, asked):
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.commits:
            return self._json({"url": f"{self.hub.url}/{repo}", "error": "You already created this"}, 409)
        self.hub.commits[repo], self.hub.downloads[repo] = [], 0
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{repo}"})

    def _validate(self, card):
        self.hub.validated.append(card)
        data = yaml.safe_load(card.split("---\n")[1])
        wrong = [code for code in data.get("language", []) if not re.fullmatch("[a-z]{2,3}", code)]
        if "base_model" in data and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data["base_model"]):
            wrong.append(data["base_model"])
        answer = {"errors": [{"message": f"not valid: {name}"} for name in wrong], "warnings": []}
        return self._json(answer, 400 if wrong else 200)

    def _branch(self, repo, branch):
        if (repo, branch) in self.hub.branches:
            return self._json({"error": "Reference already exists"}, 409)
        self.hub.branches[repo, branch] = self.hub.branches[repo, "main"]
        return self._json({})

    def _preupload(self, repo, branch, asked):
        have = self.hub.find(repo, branch)[1]
        files = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": _blob(have[file["path"]]) if file["path"] in have else None,
            }
            for file in asked["files"]
        ]
        return self._json({"files": files})

    def _commit(self, repo, branch, body):
        if self.hub.interrupted:
            self.hub.interrupted -= 1
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        files = dict(self.hub.find(repo, branch)[1])
        lines = [json.loads(line) for line in body.splitlines()]
        parent = next((line["value"].get("parentCommit") for line in lines if line["key"] == "header"), None)
        if parent not in (None, self.hub.branches[repo, branch]):
            return self._json({"error": "A commit has happened since"}, 412)
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        name = self.hub.commit(repo, files, branch)
        answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/{name}", "commitOid": name, "success": True}
        return self._json(answer)

    def _resolve(self, repo, revision, path):
        commit = self._find(repo, revision)
        if commit is None:
            return
        if path not in commit[1]:
            self._missing("EntryNotFound")
            return
        self.hub.downloads[repo] += path == "config.json" and self.command == "GET"
        content = commit[1][path]
        self._answer(content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": commit[0]})

    def _find(self, repo, revision):
        barred = repo in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repo not in self.hub.commits or barred:
            self._missing("RepoNotFound")
            return None
        commit = self.hub.find(repo, revision)
        if commit is None:
            self._missing("RevisionNotFound")
        return commit

    def _info(self, repo, commit):
        siblings = [{"rfilename": path} for path in commit[1]]
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit[0],
            "siblings": siblings,
            "private": repo in self.hub.private,
            "tags": [],
        }

    def _tree(self, files):
        return [
            {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            for path, content in files.items()
        ]

    def _missing(self, code):
        self._json({"error": code}, 404, {"X-Error-Code": code})

    def _json(self, answer, status=200, headers=None):
        self._answer(
            json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})}, status
        )

    def _answer(self, content, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def run(hub, home, program, *arguments, token=TOKEN):
    """Run a program whose Hub is the stand-in; return what it printed as JSON in its last line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    finished = run_python(program, *arguments, env=environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])
