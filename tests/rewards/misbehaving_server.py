"""A real HTTP server that speaks OpenAI's protocol, and misbehaves on request."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers by `script`, one entry a request, then by `otherwise`; keeps what it was asked.

    Entries: "ok0" and "ok1" (that score), "unsure" (no score), "one" (a single answer however many are wanted), "429",
    "500", "401" (echoes the key), "404", "slow", "hang" (never), "garbage", "half" (a JSON document cut off),
    "schema" (valid JSON of another form), "drop" (closes the connection), "drip" (a byte at a time, headers first),
    "later" (429 with Retry-After: 20), "huge" (64 MB), "claims" (a Content-Length of 8 GB), "bomb" (gzip of 64 MB
    of zeros), "redirect" (to `elsewhere`), "nulls" (usage without counts), "echo" (the key in the answer), "400"
    (complains of max_tokens).
    """

    def __init__(self, *script: str, otherwise: str = "ok1", slow: float = 0.05) -> None:
        self.script, self.otherwise, self.slow = deque(script), otherwise, slow
        self.requests: list[dict] = []
        self.at_once, self.most_at_once = 0, 0
        self.elsewhere = "http://127.0.0.1:9/v1/chat/completions"
        self.keys: list[str | None] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.keys.append(handler.headers["Authorization"])
            kind = self.script.popleft() if self.script else self.otherwise
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._send(handler, kind, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up
        finally:
            with self._lock:
                self.at_once -= 1

    def _send(self, handler: BaseHTTPRequestHandler, kind: str, body: dict) -> None:
        if kind == "drip":
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n"
            for byte in head + b" " * 400:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)
            return
        time.sleep({"slow": 0.5, "hang": 2.0}.get(kind, self.slow if kind.startswith("ok") else 0.0))
        if kind == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        score = "0" if kind == "ok0" else "1"
        text = "It moves.\nFinal Score: " + score if kind != "unsure" else "I would rather not say."
        count = 1 if kind == "one" else body.get("n", 1)
        said = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [
                {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                for i in range(count)
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 10 * count, "total_tokens": 1000 + 10 * count},
        }  # fmt: skip
        if kind == "nulls":
            said["usage"] = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}
        if kind == "echo":
            for choice in said["choices"]:
                choice["message"]["content"] = (
                    f"Your header is {handler.headers['Authorization']}.\nFinal Score: 1"
                )
        status, text = 200, json.dumps(said)
        headers: dict[str, str] = {}
        if kind in ("429", "500", "401", "404"):
            status = int(kind)
            text = json.dumps(
                {"error": {"message": f"no, {handler.headers['Authorization']}", "type": "x", "code": "x"}}
            )
        elif kind == "400":
            status, text = (
                400,
                json.dumps({"error": {"message": "Unsupported parameter: 'max_tokens'", "type": "x"}}),
            )
        elif kind == "later":
            status, headers = 429, {"Retry-After": "20"}
        elif kind == "huge":
            text = text[:-1] + " " * 64_000_000 + "}"
        elif kind == "claims":
            headers = {"Content-Length": "8000000000"}
        elif kind == "redirect":
            status, headers = 307, {"Location": self.elsewhere}
        elif kind == "garbage":
            text = "<html>Welcome to the hotel's network</html>"
        elif kind == "half":
            text = text[: len(text) // 2]
        elif kind == "schema":
            text = json.dumps({"choices": "none", "usage": 3})
        data = text.encode()
        if kind == "bomb":
            data, headers = gzip.compress(bytes(64_000_000)), {"Content-Encoding": "gzip"}
        if kind == "429":
            headers = {"Retry-After": "0.01"}
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
