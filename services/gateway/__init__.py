"""The mesh's door: HTTP in, gRPC through ``lb`` behind it, and a page that shows what happens."""
