"""A web application that answers at once and leaves the work to others.

POST /texts puts a text into the topic and answers 202 with the address of its result, as soon as the record is stored:
what was accepted is not lost, whatever dies. GET /results/ID tells whether it is there.

Run: python web.py [port]
"""

import json
import os
import signal
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import results

import fastlog

LONGEST_TEXT = 100_000

store = fastlog.open(os.environ.get("FASTLOG_STORE", "data"))
store.create_topic("texts", partitions=4, exist_ok=True)
producer = store.producer()  # one for all threads


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        if self.path != "/texts":
            return self.answer(404, {"error": "POST /texts"})
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= LONGEST_TEXT:
            return self.answer(400, {"error": f"a text has 1 to {LONGEST_TEXT} bytes"})
        # a client that does not know whether it was heard may repeat the request under the same key
        name = self.headers.get("Idempotency-Key") or str(uuid.uuid4())
        try:
            producer.send(
                "texts", self.rfile.read(size), key=name.encode(), headers={"id": name.encode()}
            ).result(timeout=5)  # fmt: skip
        except fastlog.Error as error:
            return self.answer(503 if error.retriable else 500, {"error": str(error)})
        return self.answer(202, {"id": name, "result": f"/results/{name}"})

    def do_GET(self) -> None:
        _, _, name = self.path.rpartition("/results/")
        found = results.find(name)
        if found is None:
            return self.answer(404, {"state": "not there (yet)"})
        return self.answer(200, {"state": "done", "result": found})

    def answer(self, status: int, body: dict[str, object]) -> None:
        content = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        store.close()  # and its producer, when everything is stored


if __name__ == "__main__":
    main()
