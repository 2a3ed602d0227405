"""A simulator of RazorpayX and its neighbours, written from public documentation. It moves no money.

It runs as its own process and imports nothing from streamproc; streamproc meets it only through HTTP.
README.md beside this file says what is a guess about the real bank.
"""
