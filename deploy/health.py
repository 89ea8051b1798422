"""The container's health check: does the server in here say that it serves?

    python -I -S health.py grpc 50051
    python -I -S health.py http 8080 /healthz

Exit status 0 when it does, 1 when not, with a word why. Run every other second in a dozen
containers, so it imports no grpcio (0.13 s of CPU): it speaks just enough HTTP/2 to ask
``grpc.health.v1.Health/Check`` once, and takes 0.03 s.
"""

import socket
import struct
import sys

TIMEOUT_S = 2.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def literal(name: str, value: str) -> bytes:
    """A header field that nobody indexes, without Huffman coding (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def read(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes; raises ``EOFError`` when the peer ends before."""
    got = b""
    while len(got) < size:
        chunk = connection.recv(size - len(got))
        if not chunk:
            raise EOFError("the connection was closed")
        got += chunk
    return got


def grpc_serves(port: int) -> str:
    """Empty when the server's overall status is SERVING, else what it is instead."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": f"{int(TIMEOUT_S * 1000)}m",
    }
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, b"")
            + frame(HEADERS, END_HEADERS, 1, b"".join(literal(*field) for field in fields.items()))
            + frame(DATA, END_STREAM, 1, b"\x00" * 5)  # an empty HealthCheckRequest: the whole server
        )
        while True:
            head = read(connection, 9)
            size, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], head[5:]
            body = read(connection, size)
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == DATA and stream[-1] == 1 and len(body) >= 5:
                return "" if body[5:] == SERVING else f"status {body[-1] if body[5:] else 0}, not SERVING"
            elif kind == GOAWAY or (kind == HEADERS and flags & END_STREAM):
                return "the call failed"


def http_serves(port: int, path: str) -> str:
    """Empty when the answer is a 2xx, else its status line."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line = read(connection, 12).decode("latin-1")
        return "" if line.startswith("HTTP/1.1 2") else f"answered {line}"


def main(arguments: list[str]) -> int:
    """Ask; returns the exit status."""
    try:
        match arguments:
            case ["grpc", port]:
                problem = grpc_serves(int(port))
            case ["http", port, path]:
                problem = http_serves(int(port), path)
            case _:
                problem = "usage: health.py grpc PORT | http PORT PATH"
    except (OSError, EOFError) as error:
        problem = str(error)
    if problem:
        print(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
