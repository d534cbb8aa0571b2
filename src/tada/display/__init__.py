"""What people look at: pictures, pages, results in a notebook."""
