"""``seqgraph serve``: starts the service."""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_TOKEN = "SEQGRAPH_TOKEN"


def serve(
    run: Annotated[Path, typer.Argument(help="A run of 'seqgraph train', or a checkpoint folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback want a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the users' states and the log of events; RUN.users by default.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="What states are kept in; half the memory.")
    ] = "float32",
    max_users: Annotated[int, typer.Option(min=1, help="Most users; memory is taken as they come.")] = 100_000,
    max_history: Annotated[int, typer.Option(min=1, help="Most items of a history in a request.")] = 2000,
    max_k: Annotated[int, typer.Option("--max-k", min=1, help="Longest list.")] = 1000,
    max_body: Annotated[int, typer.Option(min=256, help="Largest body of a request, bytes.")] = 1 << 18,
    snapshot_every: Annotated[int, typer.Option(min=1, help="Events between two snapshots.")] = 10_000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients must send; ${_TOKEN} does the same.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that clients may call this service by; can be repeated.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="The model is new: read all stored histories again.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Serve lists over HTTP that change with each event: /recommend, /event, /health, and a page to try it on.

    Users need not have been in the training data. Each has a state of constant size; events are logged before they
    are acknowledged, and survive a crash.
    """
    from seqgraph.errors import ConfigError, PluginError

    token = _token(token_file)
    loopback = _is_loopback(host)
    if not loopback and token is None:
        raise ConfigError(
            f"{host} can be reached from elsewhere, and there is no token", f"set ${_TOKEN}, or --token-file"
        )
    listener = _listen(host, port)
    try:
        import torch
        import uvicorn

        import seqgraph
        from seqgraph_mamba4rec.serve.app import Limits, make_app
        from seqgraph_mamba4rec.serve.engine import Engine
        from seqgraph_mamba4rec.serve.store import UserStore

        model: Any = seqgraph.load(run, device=device)
        if not hasattr(model, "step") or not hasattr(model, "recommend_from"):
            raise PluginError(f"{run}: a {type(model).__name__} has no state to step", "give a run of mamba4rec")
        folder = state or run.with_name(f"{run.resolve().name}.users")
        store = UserStore(folder, model, capacity=max_users, dtype=getattr(torch, dtype), rebuild=rebuild)
        engine = Engine(store, snapshot_every=snapshot_every)
        names = {host.lower(), "127.0.0.1", "localhost", "[::1]"} | {name.lower() for name in allow_host or ()}
        app = make_app(
            engine,
            limits=Limits(body=max_body, history=max_history, k=max_k),
            hosts=names if loopback or allow_host else None,
            token=token,
        )
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=30)
        server = uvicorn.Server(config)
        if store.dropped:
            typer.echo(f"left out {store.dropped} events of items that this model does not know")
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{listener.getsockname()[1]}  {len(store.catalogue.ids):,} items, {_counts(store)}")
        typer.echo(f"states and log in {folder}; {'a token is needed' if token else 'no token'}; stop with Ctrl-C")
        # All that was imported stays: going through it again and again would halt requests for 0.1 s or more.
        gc.collect()
        gc.freeze()
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped in good order and hands it on
            server.run(sockets=[listener])
        typer.echo(f"stopped; safe in {folder}: {_counts(store)}")
    finally:
        listener.close()


def _counts(store: Any) -> str:
    return f"{store.events:,} events of {len(store.rows):,} users"


def _token(file: Path | None) -> str | None:
    from seqgraph.errors import ConfigError

    where, token = f"${_TOKEN}", os.environ.get(_TOKEN)
    if file is not None:
        where, token = str(file), file.read_text(encoding="utf-8", errors="replace")
    if token is None:
        return None
    token = token.strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: a token is 16 letters, digits and signs or more", "openssl rand -hex 32 makes one")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    from seqgraph.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"{host!r} is no address of this machine: {error.strerror}", "--host 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} of {host} is taken", f"--port {port + 1}, or --port 0 for any") from None
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}", "another --host or --port"
        ) from None
    return listener
