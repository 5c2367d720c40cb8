"""Reads a feed as a vendor would: nats-py with URL, user, password, and a durable consumer's name or a subject. Knows nothing of Strata.

read.py URL USER PASSWORD pull STREAM DURABLE COUNT   payloads on stdout, one line each in JSON: subject, headers, text; acknowledged
read.py URL USER PASSWORD tail SUBJECT COUNT          the same, from now on; prints "ready" first
read.py URL USER PASSWORD refused KIND ARGUMENT       tries what must not work; prints what the server said
"""
import asyncio
import json
import sys

import nats


async def main():
    url, user, password, what, *rest = sys.argv[1:]
    said = []

    async def error(problem):
        said.append(str(problem))

    nc = await nats.connect(url, user=user, password=password, error_cb=error, allow_reconnect=False, connect_timeout=20)

    def show(message):
        print(json.dumps({"subject": message.subject, "headers": dict(message.headers or {}), "text": message.data.decode()}), flush=True)

    if what == "pull":
        stream, durable, count = rest[0], rest[1], int(rest[2])
        js = nc.jetstream(timeout=30)
        consumer = await js.pull_subscribe_bind(durable=durable, stream=stream)
        while count > 0:
            try:
                batch = await consumer.fetch(min(count, 100), timeout=10)
            except (nats.errors.TimeoutError, asyncio.TimeoutError):
                break
            for message in batch:
                show(message)
                await message.ack_sync(timeout=30)
            count -= len(batch)
    elif what == "tail":
        subject, count = rest[0], int(rest[1])
        subscription = await nc.subscribe(subject)
        await nc.flush(timeout=30)
        print("ready", flush=True)
        for _ in range(count):
            show(await subscription.next_msg(timeout=60))
    elif what == "refused":
        kind, argument = rest
        if kind == "subscribe":
            await nc.subscribe(argument)
        elif kind == "publish":
            await nc.publish(argument, b"forged")
        elif kind == "request":
            try:
                answer = await nc.request(argument, b"", timeout=2)
                said.append("answered: " + answer.data.decode())
            except Exception as problem:
                said.append("no answer: " + type(problem).__name__)
        await nc.flush(timeout=30)
        # The client hears of a violation in a task of its own.
        for _ in range(400):
            if said:
                break
            await asyncio.sleep(0.05)
        print("\n".join(said), flush=True)
    await nc.close()


asyncio.run(main())
