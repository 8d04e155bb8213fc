"""A small Hugging Face Hub on 127.0.0.1: enough of its HTTP interface for the real client to push and pull.

Repositories live in memory as lists of commits. Like the Hub it wants a token for writing, refuses a card
whose metadata is wrong, and counts requests of config.json as downloads.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"


class HubStandIn:
    """Serves while the context is open.

    `commits[repo]` is a list of (commit id, files) with files as path → bytes; `downloads[repo]` a number.
    """

    def __init__(self):
        self.commits, self.downloads = {}, {}
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
        commits = self.commits[repo]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)

    def commit(self, repo, files):
        number = len(self.commits[repo])
        name = hashlib.sha1(f"{repo} {number} {sorted(files)}".encode()).hexdigest()
        self.commits[repo].append((name, files))
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
        repo, action = re.fullmatch(r"/api/models/(.+?)/(preupload|commit)/main", path).groups()
        if repo not in self.hub.commits:
            return self._missing("RepoNotFound")
        return self._preupload(repo, json.loads(body)) if action == "preupload" else self._commit(repo, body)

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
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{repo}"})

    def _validate(self, card):
        data = yaml.safe_load(card.split("---\n")[1])
        wrong = [code for code in data.get("language", []) if not re.fullmatch("[a-z]{2,3}", code)]
        if "base_model" in data and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data["base_model"]):
            wrong.append(data["base_model"])
        answer = {"errors": [{"message": f"not valid: {name}"} for name in wrong], "warnings": []}
        return self._json(answer, 400 if wrong else 200)

    def _preupload(self, repo, asked):
        have = self.hub.find(repo, "main")[1]
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

    def _commit(self, repo, body):
        files = dict(self.hub.find(repo, "main")[1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        name = self.hub.commit(repo, files)
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
        if repo not in self.hub.commits:
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
            "private": False,
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
