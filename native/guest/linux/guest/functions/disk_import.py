"""Reports a shop's orders in the formats that are asked for, and imports each one's library then.

Code that is imported where it is used has its cost in the first request, not in the start.
"""

INPUTS = {
    "a mail with a sheet": {"orders": 60, "formats": ["csv", "xml", "mail", "archive", "figures"]},
    "a page and a database": {"orders": 90, "formats": ["csv", "html", "database", "mail", "jobs"]},
}

HEAD = ["id", "customer", "units", "cents"]


def _orders(count):
    return [
        [f"order-{i:05}", f"customer {i * 7919 % 97} <{i}>", 1 + i % 5, 99 + i * 7907 % 9000]
        for i in range(count)
    ]


def _csv(orders):
    import csv
    import io

    text = io.StringIO()
    csv.writer(text).writerows([HEAD, *orders])
    return text.getvalue()


def _xml(orders):
    from xml.dom import minidom
    from xml.etree import ElementTree

    root = ElementTree.Element("orders")
    for order in orders:
        attributes = {name: str(value) for name, value in zip(HEAD, order)}
        ElementTree.SubElement(root, "order", attributes)
    return minidom.parseString(ElementTree.tostring(root)).toprettyxml()


def _mail(orders):
    from email import message_from_bytes, policy
    from email.message import EmailMessage

    mail = EmailMessage(policy=policy.SMTP)
    mail["To"] = "Orders <orders@example.com>"
    mail["Subject"] = f"{len(orders)} orders, größte zuerst"
    mail.set_content("Attached.")
    mail.add_attachment(_csv(orders), subtype="csv", filename="orders.csv")
    mail.set_boundary("orders")
    return message_from_bytes(mail.as_bytes(), policy=policy.default).as_string()


def _archive(orders):
    import io
    import tarfile
    import zipfile

    content = _csv(orders).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("orders.csv"), content)
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("orders.zip")
        entry.size = packed.tell()
        archive.addfile(entry, io.BytesIO(packed.getvalue()))
    with tarfile.open(fileobj=io.BytesIO(outer.getvalue())) as archive:
        unpacked = archive.extractfile("orders.zip").read()
    return zipfile.ZipFile(io.BytesIO(unpacked)).read("orders.csv").decode()


def _figures(orders):
    import decimal
    import fractions
    import statistics

    cents = [units * each for _, _, units, each in orders]
    figures = [
        decimal.Decimal(sum(cents)) / 100,
        fractions.Fraction(sum(cents), len(cents)),
        statistics.median(cents),
        round(statistics.stdev(cents), 6),
    ]
    return ", ".join(map(str, figures))


def _html(orders):
    from html import escape
    from html.parser import HTMLParser
    from urllib.parse import quote

    cells = []
    parser = HTMLParser()
    parser.handle_data = cells.append
    for order in orders:
        parser.feed(f'<a href="/{quote(order[1])}">{escape(order[1])}</a>')
    parser.close()
    return "\n".join(cells)


def _database(orders):
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE orders (id TEXT, customer TEXT, units INTEGER, cents INTEGER)")
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", orders)
    best = database.execute("SELECT id FROM orders ORDER BY units * cents DESC, id LIMIT 5")
    return str(best.fetchall())


def _jobs(orders):
    import asyncio
    import logging.config

    logging.config.dictConfig({"version": 1, "root": {"level": "ERROR"}})

    async def price(order):
        await asyncio.sleep(0)
        return order[2] * order[3]

    async def prices():
        return await asyncio.gather(*map(price, orders))

    return str(asyncio.run(prices()))


FORMATS = {
    "csv": _csv,
    "xml": _xml,
    "mail": _mail,
    "archive": _archive,
    "figures": _figures,
    "html": _html,
    "database": _database,
    "jobs": _jobs,
}


def handle(request):
    import hashlib

    orders = _orders(request["orders"])
    texts = {name: FORMATS[name](orders) for name in request["formats"]}
    return {
        name: {"length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for name, text in texts.items()
    }
