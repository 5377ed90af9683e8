"""Policies and world models over a network: the message format, a server and a client for both.

The transport is a websocket with msgpack messages, as in openpi (`packages/openpi-client`), so that openpi's client and
server can be at the other end. It needs the extra `serve` (websockets and msgpack).
"""
