"""A simulator of RazorpayX and its neighbours, written from public documentation. It moves no money.

It runs as its own process and imports nothing from streamproc; streamproc meets it only through HTTP.
What is a guess about the real bank is said so in README.md beside this file.
"""
