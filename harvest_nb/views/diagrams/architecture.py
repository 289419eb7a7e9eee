"""The parts of the executor and of this kit, and how a snapshot comes to be."""

from __future__ import annotations

from harvest_nb.views.diagrams.draw import Diagram, flow, group, link, node

__all__ = ["build", "overview"]


def overview() -> Diagram:
    """Production above, the desk below: the same sandbox, another way into it."""
    api = node("api", "relevance-api-node", "prod")
    daytona = node("daytona", "Daytona", "prod")
    anthropic = node("anthropic", "Anthropic<br/>Messages API", "model", shape="stadium-shape")
    prod_sdk = node("prod_sdk", "Claude Agent SDK", "sandbox")
    prod_cli = node("prod_cli", "Claude<br/>(the claude CLI)", "sandbox")
    prod_box = group("prod_box", "sandbox, from the snapshot", [prod_sdk, prod_cli])

    notebook = node("notebook", "notebook, CLI<br/>or CI", "desk")
    sdk = node("sdk", "Claude Agent SDK<br/>over SandboxTransport", "desk")
    folder = node("folder", "run folder", "record", shape="cylindrical")
    loopback = node("loopback", "loopback endpoint<br/>(scripted, cassette)", "model", shape="stadium-shape")
    docker = node("docker", "Docker", "desk")
    desk = group("desk", "desk", [notebook, sdk, folder, loopback, docker])
    relay = node("relay", "relay<br/>(one stream)", "sandbox")
    cli = node("cli", "Claude<br/>(the claude CLI)", "sandbox")
    servers = node("servers", "MCP servers", "sandbox")
    box = group("box", "sandbox, from the same snapshot, no network", [relay, cli, servers])
    return flow(
        "overview",
        "The executor in production, and the same snapshot on a desk",
        [api, daytona, prod_box, anthropic, desk, box],
        [
            link(api, daytona, "creates"),
            link(daytona, prod_sdk, "starts"),
            link(prod_sdk, prod_cli, both=True),
            link(prod_cli, anthropic, "HTTPS"),
            link(notebook, docker, "creates"),
            link(notebook, sdk, "prompt"),
            link(sdk, folder, "every message"),
            link(docker, relay, "starts"),
            link(sdk, relay, "numbered frames", both=True),
            link(relay, cli, "stdin, stdout", both=True),
            link(cli, servers, "stdio", both=True),
            link(relay, loopback, "carries the CLI's<br/>127.0.0.1 connections", shape="dotted"),
        ],
    )


def build() -> Diagram:
    """Config sources to build context to image."""
    sources = node("sources", "config sources<br/>.claude/, docs/ai/, docs/mcp/, memory seed", "record")
    mapping = node("mapping", "config/sources.toml", "record")
    collect = node("collect", "collect: size limits, links,<br/>dangling @references", "desk")
    manifest = node("manifest", "manifest.json<br/>path, size, SHA-256, commit, versions", "record")
    context = node("context", "build context,<br/>made afresh", "desk")
    files = node("files", "Dockerfile, npm lockfile,<br/>entrypoint, relay", "record")
    base = node(
        "base",
        "base image<br/>node:20-bookworm-slim, or<br/>from Debian's packages",
        "prod",
    )
    engine = node("engine", "Docker engine<br/>(classic builder)", "prod")
    image = node("image", "snapshot image<br/>harvest-daytona-snapshot", "sandbox")
    checks = node("checks", "validation contract", "desk")
    return flow(
        "build",
        "From config sources to the snapshot image",
        [sources, mapping, collect, manifest, context, files, base, engine, image, checks],
        [
            link(sources, collect),
            link(mapping, collect, "says what goes where"),
            link(collect, manifest),
            link(collect, context, "exact bytes"),
            link(manifest, context),
            link(files, context),
            link(context, engine),
            link(base, engine),
            link(engine, image, "labels: manifest digest,<br/>commit, versions"),
            link(image, checks, "validated in a sandbox"),
        ],
    )
