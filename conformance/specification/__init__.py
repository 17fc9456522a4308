"""The clauses as they are declared, and the page that lists them."""
