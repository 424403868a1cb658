/* SPDX-License-Identifier: MIT */
static pthread_mutex_t lock;

void f(void)
{
    pthread_mutex_lock(&lock);
}
