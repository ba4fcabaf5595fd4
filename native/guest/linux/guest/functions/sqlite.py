"""Queries over a shop's orders, in an SQLite database in memory."""

import random
import sqlite3

INPUTS = {
    "region 3": {"region": 3, "since": 20, "pattern": "lamp%"},
    "region 7": {"region": 7, "since": 5, "pattern": "%table 1%"},
}


def _database():
    some = random.Random(8)
    database = sqlite3.connect(":memory:")
    database.executescript("""
        CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, cents INTEGER);
        CREATE TABLE customers (id INTEGER PRIMARY KEY, region INTEGER, name TEXT);
        CREATE TABLE orders (
            id INTEGER PRIMARY KEY, customer INTEGER, product INTEGER, units INTEGER, day INTEGER
        );
    """)
    kinds = ["lamp", "chair", "table", "shelf", "rug"]
    products = [(i, f"{some.choice(kinds)} {i}", some.randint(500, 90000)) for i in range(500)]
    customers = [(i, i % 10, f"customer {some.getrandbits(32):08x}") for i in range(2000)]
    orders = [
        (i, some.randrange(2000), some.randrange(500), some.randint(1, 5), some.randrange(30))
        for i in range(20000)
    ]
    database.executemany("INSERT INTO products VALUES (?, ?, ?)", products)
    database.executemany("INSERT INTO customers VALUES (?, ?, ?)", customers)
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", orders)
    database.executescript("""
        CREATE INDEX customers_region ON customers (region);
        CREATE INDEX orders_customer ON orders (customer);
        ANALYZE;
    """)
    return database


DATABASE = _database()


def handle(request):
    best = DATABASE.execute(
        """SELECT c.name, count(*), sum(o.units * p.cents) AS spent
           FROM customers c
           JOIN orders o ON o.customer = c.id
           JOIN products p ON p.id = o.product
           WHERE c.region = :region AND o.day >= :since
           GROUP BY c.id ORDER BY spent DESC, c.id LIMIT 5""",
        request,
    )
    sold = DATABASE.execute(
        """SELECT p.name, sum(o.units) AS units
           FROM products p
           JOIN orders o ON o.product = p.id
           JOIN customers c ON c.id = o.customer
           WHERE c.region = :region AND p.name LIKE :pattern
           GROUP BY p.id ORDER BY units DESC, p.id LIMIT 5""",
        request,
    )
    return {"best": best.fetchall(), "sold": sold.fetchall()}
