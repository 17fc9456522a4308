"""The declaration of clauses, and the page that lists them."""
