"""Policies: vision-language-action networks, their action heads, and adapters."""
