/* SPDX-License-Identifier: MIT */
void f(void *p)
{
    char *a = malloc(1);
    char *b = calloc (1, 1);
    a = realloc(a, 2);
    free(a), free(b);
    p->free(p);
}
