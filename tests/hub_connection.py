"""How the loopback Hub speaks HTTP: one request after the other, who asks, and failing on purpose.

Part of `loopback_hub.py`, which describes the faults.
"""

import contextlib
import functools
import json
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from hub_repositories import HubError

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
WRONG_TOKEN = "Invalid credentials in Authorization header"  # the client knows this sentence


class ClosedError(Exception):
    """The connection is to be closed without a (whole) answer."""


def route(method, pattern):
    def mark(function):
        function.route = (method, re.compile(pattern))
        return function

    return mark


@functools.cache
def routes_of(handler):
    """The marked methods of a handler and of the classes that it extends."""
    members = [member for parent in handler.__mro__ for member in vars(parent).values()]
    return [member for member in members if hasattr(member, "route")]


class Connection(BaseHTTPRequestHandler):
    """Takes requests to the methods that `route` marks, by the order in which they are written.

    Such a method gets the named groups of its pattern, decoded, "" for those that did not match, and returns
    status, content (bytes, or what becomes JSON) and headers. It holds the lock of the server meanwhile.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # or every body waits 40 ms for its headers to be acknowledged

    def log_message(self, *args):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.handle_request
        raise AttributeError(name)

    def handle_request(self):
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        self.fault, self.user, self.role = None, None, None
        self.record = {"method": self.command, "path": self.path, "status": None, "received": 0, "user": None}
        if not url.path.startswith("/__faults__") and url.path != "/__requests__":
            self.server.requests.append(self.record)
            self.fault = self.server.next_fault(self.command, self.path)
        try:
            self.body = self.read_body()
            self.answer(*self.answer_to(url.path))
        except (ClosedError, ConnectionError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(pieces)
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length // 2 if self.fault == "cut" else length)
        self.record["received"] = len(body)
        if self.fault == "cut" and body:
            raise ClosedError
        return body

    def answer_to(self, path):
        """Status, content and headers of the answer to a request."""
        try:
            if self.fault == 401:
                raise HubError(401, WRONG_TOKEN)
            if isinstance(self.fault, int):
                raise HubError(self.fault, f"Status {self.fault} was asked for")
            with self.server.lock:
                answer = self.dispatch(path)
        except HubError as error:
            headers = {"X-Error-Message": " ".join(str(error).split()), "X-Error-Code": error.code}
            headers = {key: value for key, value in headers.items() if value}
            return error.status, {"error": str(error), **error.details}, headers
        except (KeyError, TypeError, ValueError) as error:
            return 400, {"error": f"The request is malformed: {error!r}"}
        if self.fault == "lost":
            raise ClosedError
        return answer

    def answer(self, status, content=b"", headers=None):
        headers = dict(headers or {})
        if isinstance(content, dict | list):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.record["status"] = None if self.fault == "cut" else status
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.fault == "cut":
            content = content[: len(content) // 2]
        if self.command != "HEAD":
            self.wfile.write(content)
        if self.fault == "cut":
            raise ClosedError

    @route("GET", "/__requests__")
    def list_requests(self):
        return 200, self.server.requests

    @route("POST", "/__faults__")
    def add_faults(self):
        self.server.add_faults(json.loads(self.body))
        return 200, self.server.faults

    @route("DELETE", "/__faults__")
    def delete_faults(self):
        self.server.faults.clear()
        return 200, self.server.faults

    # Who asks for what

    def dispatch(self, path):
        if not self.path.startswith("/"):
            raise HubError(404, f"{self.path} is on another machine: as a proxy this Hub lets nothing out")
        self.authenticate()
        method = "GET" if self.command == "HEAD" else self.command
        for function in routes_of(type(self)):
            wanted, pattern = function.route
            if wanted == method and (found := pattern.fullmatch(path)):
                return function(
                    self, **{key: unquote(value or "") for key, value in found.groupdict().items()}
                )
        raise HubError(404, f"Not Found: {self.command} {path}")

    def authenticate(self):
        authorization = self.headers.get("Authorization", "")
        if authorization:
            token = authorization.removeprefix("Bearer ")
            if token not in self.hub.users:
                raise HubError(401, WRONG_TOKEN)
            self.user, self.role = self.hub.users[token]
            self.record["user"] = self.user

    @property
    def hub(self):
        return self.server.hub

    @functools.cached_property
    def endpoint(self):
        return f"http://{self.headers.get('Host') or self.server.endpoint.removeprefix('http://')}"

    def find(self, kind, name):
        """The repository, if the user may see it; like the Hub it does not tell a private one from none."""
        repository = self.hub.repositories.get((KINDS.get(kind, kind), name))
        if repository is None or (repository.private and repository.owner != self.user):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def must_write(self, owner):
        self.must_log_in()
        if self.role != "write":
            raise HubError(403, "This token can only read: a token with write access is needed")
        if owner != self.user:
            raise HubError(403, f'You do not have the rights to write to the namespace "{owner}"')

    def must_log_in(self):
        if not self.user:
            raise HubError(401, "Invalid username or password.")

    def find_to_write(self, kind, name):
        repository = self.find(kind, name)
        self.must_write(repository.owner)
        return repository

    def json(self):
        return json.loads(self.body or b"{}")


class FaultyServer(ThreadingHTTPServer):
    """Answers on loopback; `faults` tells what is still to fail, `requests` what came."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port, handler):
        super().__init__(("127.0.0.1", port), handler)
        self.lock = threading.RLock()
        self.faults, self.requests = [], []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients of the tests hang up as they like
            super().handle_error(request, client_address)

    def add_faults(self, faults):
        """Let requests fail; the module loopback_hub says what a fault is."""
        for fault in faults:
            if unknown := set(fault) - {"method", "path", "skip", "count", "kind"}:
                raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
            if fault["kind"] not in ("cut", "lost") and not isinstance(fault["kind"], int):
                raise ValueError(f'kind is a status, "cut" or "lost", not {fault["kind"]!r}')
            self.faults.append({"method": "", "path": "", "skip": 0, "count": 1, **fault})

    def next_fault(self, method, path):
        """What shall befall this request: a status, "cut", "lost", or None."""
        with self.lock:
            for fault in self.faults:
                if fault["method"] in ("", method) and fault["count"] and re.search(fault["path"], path):
                    if not fault["skip"]:
                        fault["count"] -= 1
                        return fault["kind"]
                    fault["skip"] -= 1
        return None
